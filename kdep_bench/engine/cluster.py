"""A plan through Snakemake: on Slurm, on whatever else it has a plugin for, or on this machine.

Snakemake gets what must run by the stage directories, and each of its jobs is the stage command
(`stage.py`), which takes the stage's lock and looks at its directory again. So runs here and there
can be mixed, and nothing is lost or done twice when this process, or Snakemake, is killed: jobs it
left in Slurm's queue go on, and a later run's jobs for the same stages wait for them there.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdep_bench.engine import attempts, stage_process, state
from kdep_bench.engine.local_pool import Outcome
from kdep_bench.engine.lock import StageLock
from kdep_bench.engine.machine import cpu_count
from kdep_bench.engine.progress import Silent, View
from kdep_bench.engine.stage import NOTICE, RUN_WORD, write_plan
from kdep_bench.errors import KdepError
from kdep_bench.files import text_hash, write_json
from kdep_bench.forecast.costs import Costs
from kdep_bench.safe_files import real_folder
from kdep_bench.suite.config import REPO
from kdep_bench.suite.graph import Plan, Stage

ROOM, RUN = ".cluster", "suite.json"
SNAKEFILE = Path(__file__).with_name("Snakefile")
WIDE = 4  # cores asked for a stage that takes all of one machine; runtime.cpus says otherwise
SHORT = 120.0  # seconds of a job below which a notice, up to 60 s early, would come at its start
JOBS = 100  # most jobs in a cluster's queue at once
_POLL = 1.0
_HEARD = "Terminating processes on user request"  # Snakemake's word that it cancels its jobs
_AGAIN = 15.0  # seconds after which it is asked once more if it has not said so


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        executor: name of a Snakemake executor plugin; 'snakemake-local' for this machine.
        jobs: most jobs at once; None = JOBS, or as many as the cores allow on this machine.
        gpus: device numbers of this machine; a cluster gives out its own.
        without_gpus: ask a cluster for none, as it has none or none that torch can use.
        fail_fast: submit nothing more after the first failure.
        retry: further tries of a failed stage.
        more: further arguments of Snakemake, such as the partition.
    """

    executor: str = "slurm"
    jobs: int | None = None
    gpus: tuple[str, ...] = ()
    without_gpus: bool = False
    fail_fast: bool = False
    retry: int = 0
    more: tuple[str, ...] = field(default=())

    @property
    def here(self) -> bool:
        return self.executor == "snakemake-local"


def find_snakemake() -> str:
    """Snakemake's program: $KDEP_SNAKEMAKE, beside this Python, `make cluster`'s, or in the PATH.

    Raises:
        KdepError: there is none.
    """
    beside = Path(sys.executable).with_name("snakemake")
    places = (os.environ.get("KDEP_SNAKEMAKE"), beside, REPO / ".venv-cluster/bin/snakemake")
    found = next((str(p) for p in places if p and Path(p).is_file()), None)
    found = found or shutil.which("snakemake")
    if found is None:
        raise KdepError(
            "Snakemake is not installed",
            fix="run `make cluster`, or install the extra: pip install 'kdep_bench[cluster]'",
        )
    return found


def prefix(work: Path) -> str:
    """How the jobs of a work dir are called in Slurm's queue; equal on every machine that sees it
    under the same path."""
    return f"kdep-{text_hash(str(work.resolve()))}"


def queued(work: Path) -> dict[str, list[str]]:
    """Stage id -> Slurm jobs that are pending or running for it, whoever submitted them."""
    out: dict[str, list[str]] = {}
    said = subprocess.run(
        ["squeue", "--noheader", "--me", "--format=%i|%j|%k"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for line in said.stdout.splitlines():
        job, name, comment = [*line.split("|", 2), "", ""][:3]
        if name.startswith(prefix(work)):  # the plugin's comment: rule_stage_wildcards_<id>
            out.setdefault(comment.partition("_wildcards_")[2], []).append(job)
    return out


def run_lock(room: Path) -> StageLock:
    """What the coordinating process of a run holds as long as it lives."""
    return StageLock(room, "run")


def row(stage: Stage, options: Options, before: Sequence[str] = ()) -> dict[str, Any]:
    """What the Snakefile reads of one stage. `before`: Slurm jobs that must have ended first."""
    nodes = 1 if options.here else stage.nodes
    wide = cpu_count() if options.here else WIDE
    limit = stage.time or stage.timeout
    extra = ["--open-mode=append"]
    if limit >= SHORT:  # told early enough to stop in order; in the job's steps, where the stage is
        extra.append(f"--signal=TERM@{round(min(NOTICE, limit / 4))}")
    if before:
        extra.append(f"--dependency=afterany:{':'.join(before)}")
    return {
        "needs": [],
        "token": f"done/nodes/{stage.id}" if nodes > 1 else f"done/{stage.id}",
        "threads": (stage.cpus or wide) * stage.processes,
        "mem_mb": stage.memory,
        "runtime": math.ceil(limit / 60),
        "nodes": nodes,
        # Slurm's own GPUs by node; elsewhere Snakemake counts them.
        "gres": f"gpu:{stage.gpus}" if stage.gpus and options.executor == "slurm" else "",
        "gpu": 0
        if options.executor == "slurm" or (options.here and not options.gpus)
        else stage.gpus,
        "slurm_extra": " ".join(extra) if options.executor == "slurm" else "",
    }


def run_plan(
    plan: Plan,
    work: Path,
    known: Mapping[str, state.Status],
    options: Options,
    view: View | None = None,
) -> Outcome:
    """Runs what `known` (from `state.statuses`) says must run.

    Raises:
        KdepError: no Snakemake, or it ended before it ran any stage; a stage to be forced is
            running.
    """
    todo = [plan.stages[i] for i, s in known.items() if s.run]
    if not todo:
        return Outcome()
    return _Run(plan, work, known, todo, options, view or Silent()).run()


class _Run:
    """One run of Snakemake, watched through the stage directories."""

    def __init__(
        self,
        plan: Plan,
        work: Path,
        known: Mapping[str, state.Status],
        todo: list[Stage],
        options: Options,
        view: View,
    ) -> None:
        self.plan, self.work, self.options, self.view = plan, work, options, view
        self.todo = {s.id: replace(s, gpus=0) if options.without_gpus else s for s in todo}
        self.cost = Costs(plan, state.records(work, known)).of(todo)
        self.forced = [i for i in self.todo if known[i].forced]
        self.outcome = Outcome()
        self.signal = 0
        self.word = os.urandom(8).hex()
        self.failures: dict[str, int] = {}

    def run(self) -> Outcome:
        program = find_snakemake()
        if self.options.executor == "slurm" and shutil.which("sbatch") is None:
            raise KdepError(
                "Slurm's command sbatch was not found on this machine",
                fix="run this on the cluster's login node",
            )
        self._discard_forced()
        self.failures = {i: self._failure_time(i) for i in self.todo}
        # Not mkdtemp, whose folders are their owner's alone: a work dir may be a group's.
        room = real_folder(self.work / ROOM) / f"{self.plan.name}-{os.urandom(4).hex()}"
        room.mkdir()
        lock = run_lock(room)
        lock.take()
        self._write(room)
        log = room / "snakemake.log"
        self.view.begin(len(self.todo), lambda: sum(self.cost[i] for i in self.todo))
        self.view.note(f"Snakemake's log: {log}")
        with open(log, "ab") as f:
            child = _start([program, *self._arguments(room)], f)
        try:
            self._watch(child, log)
        finally:
            self.view.end()
            lock.free()
        self._settle(child.returncode, log)
        if self.outcome.ok:
            shutil.rmtree(room, ignore_errors=True)
        return self.outcome

    def _discard_forced(self) -> None:
        """What a forced stage left goes now: its job, and that job's requeued self, just run it."""
        for one in self.forced:
            lock = StageLock(self.work, one)
            if not lock.take():
                raise KdepError(
                    f"the stage {one} is to be rerun, but {lock.owner()} is running it now",
                    fix="wait until it ends, or stop that process",
                )
            try:
                real_folder(state.folder(self.work, one), "stage directory")
                attempts.begin(self.work, one, keep=False, mine=lock.mine).close(discard=True)
            finally:
                lock.free()

    def _write(self, room: Path) -> None:
        write_plan(room / "plan.json", self.plan.name, self.todo.values())
        before = queued(self.work) if self.options.executor == "slurm" else {}
        stages = {}
        for one, stage in self.todo.items():
            stages[one] = row(stage, self.options, before.get(one, ()))
            stages[one]["needs"] = sorted(u for u in set(stage.needs.values()) if u in self.todo)
        path = os.pathsep.join(p for p in (str(REPO), os.environ.get("PYTHONPATH", "")) if p)
        command = ["env", f"PYTHONPATH={path}", f"{RUN_WORD}={self.word}"]
        command += [sys.executable, "-m", "kdep_bench.engine.stage"]
        command += ["--plan", str(room / "plan.json"), "--work-dir", str(self.work)]
        if self.options.here and self.options.gpus:
            command += ["--gpus", ",".join(self.options.gpus)]
        said = {"stages": stages, "command": shlex.join(command), "executor": self.options.executor}
        write_json(room / RUN, said)

    def _arguments(self, room: Path) -> list[str]:
        o = self.options
        out = ["--snakefile", str(SNAKEFILE), "--configfile", str(room / RUN)]
        out += ["--directory", str(room), "--nocolor", "--retries", str(o.retry)]
        out += [] if o.fail_fast else ["--keep-going"]
        if o.here:
            out += ["--executor", "local", "--cores", str(cpu_count()), "--jobs"]
            out += [str(o.jobs or cpu_count())]
            out += ["--resources", f"gpu={len(o.gpus)}"] if o.gpus else []
        else:
            out += ["--executor", o.executor, "--jobs", str(o.jobs or JOBS)]
        if o.executor == "slurm":
            out += ["--slurm-requeue", "--slurm-jobname-prefix", prefix(self.work)]
        return [*out, *o.more]

    # --- watching ---

    def _watch(self, child: subprocess.Popen[bytes], log: Path) -> None:
        asked = 0.0

        def ask() -> None:
            nonlocal asked
            asked = time.monotonic()
            # Snakemake cancels its jobs on SIGINT, and merely waits for them on SIGTERM.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)

        def note(number: int, _: Any) -> None:
            if not self.signal:
                ask()
            self.signal = self.signal or number

        old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL)
                    return
                # It was seen to lose one on a busy machine; asked while it cancels, it would leave
                # its jobs.
                late = self.signal and time.monotonic() > asked + _AGAIN
                if late and _HEARD not in log.read_text(errors="replace"):
                    ask()
                self._look()
                self.view.refresh()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _look(self) -> None:
        for one, stage in list(self.todo.items()):
            out = state.folder(self.work, stage)
            if (out / state.STAGE).exists():
                record, _ = state.finished(stage, self.work)
                if record is not None:
                    del self.todo[one]
                    ours = record.get("run") == self.word
                    (self.outcome.ran if ours else self.outcome.elsewhere).append(one)
                    self.view.finished(stage, record, len(self.todo))
                    continue
            when = self._failure_time(one)
            if when != self.failures[one] and when:
                self.failures[one] = when
                said = state.failure(out)
                if said is not None:
                    self.outcome.failed[one] = said["error"]
                    self.view.failed(stage, said["error"], out / state.LOG)

    def _failure_time(self, one: str) -> int:
        try:
            return os.stat(state.folder(self.work, one) / state.FAILED).st_mtime_ns
        except OSError:
            return 0

    # --- at the end ---

    def _settle(self, code: int, log: Path) -> None:
        """Sorts what is not done into failed, skipped and left."""
        self._look()
        o, told = self.outcome, self.outcome.failed
        o.signal, o.failed = self.signal, {i: told[i] for i in told if i in self.todo}
        if self.signal:
            o.failed, o.left = {}, sorted(self.todo)
            return
        if (
            not (o.ran or o.elsewhere or o.failed)
            and code
            and "Error in rule" not in log.read_text()
        ):
            raise KdepError(
                f"Snakemake ended with exit code {code} and ran no stage ({_last_line(log)})",
                fix=f"read {log}",
            )
        for one, stage in self.todo.items():  # upstream first
            if one in o.failed:
                continue
            cause = next((u for u in stage.needs.values() if u in o.failed or u in o.skipped), None)
            if cause is not None:
                o.skipped[one] = f"skipped, because {cause} " + (
                    "failed" if cause in o.failed else "was skipped"
                )
            elif o.failed and self.options.fail_fast:
                o.skipped[one] = "not started, because another stage failed (--fail-fast)"
            else:
                o.failed[one] = str(
                    KdepError(
                        "the cluster job ended without a result and without an error message: it "
                        "was killed, ran out of memory, or never started",
                        fix=f"read {log} and the job's own log file, whose path it contains",
                    )
                )
                out = state.folder(self.work, stage)
                stage_process.note_failure(out, o.failed[one], stage)
                self.view.failed(stage, o.failed[one], out / state.LOG)


def _start(command: list[str], log: Any) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def alone() -> None:
        os.setsid()
        # A coordinator that nobody watches would submit on; the jobs it has submitted go on.
        libc.prctl(stage_process.PR_SET_PDEATHSIG, signal.SIGKILL)
        # Behind `nohup` or a shell's `&` it would be ignored, here and, by inheritance, there.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=alone
    )


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"

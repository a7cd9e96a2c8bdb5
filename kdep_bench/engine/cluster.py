"""Runs a plan through Snakemake: on Slurm, on other executors with a plugin, or on this machine.

Snakemake receives the stages that must run. Each of its jobs is the stage command (`stage.py`),
which takes the stage's lock and checks its directory again. Local and cluster runs can therefore
share a work dir. If this process or Snakemake is killed, no result is lost and no stage runs twice:
jobs in Slurm's queue continue, and jobs of a later run for the same stages wait for them.
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
from kdep_bench.engine.stage import NOTICE, RUN_VARIABLE, write_plan
from kdep_bench.errors import KdepError
from kdep_bench.files import text_hash, write_json
from kdep_bench.forecast.costs import Costs
from kdep_bench.paths import ROOT
from kdep_bench.safe_files import real_folder
from kdep_bench.suite.graph import Plan, Stage

RUNS_DIR = ".cluster"  # folder of the work dir with one folder per run
RUN_FILE = "suite.json"  # file of a run that the Snakefile reads
SNAKEFILE = Path(__file__).with_name("Snakefile")
# Cores requested for a stage that would use all cores of a machine, unless runtime.cpus is set.
CORES_OF_WHOLE_MACHINE = 4
# Seconds. Jobs with a shorter time limit request no warning signal, because Slurm may send it up to
# 60 s early.
SHORT_JOB = 120.0
# Values of --executor that are always accepted; others are names of installed Snakemake plugins.
EXECUTORS = ("local", "snakemake-local", "slurm")
PLUGIN_PREFIX = "snakemake_executor_plugin_"  # of the module of a plugin
MAX_JOBS = 100  # largest number of jobs in the cluster's queue at once
_POLL = 1.0  # seconds between checks of Snakemake and the stage directories
# Line in Snakemake's log when it cancels its jobs.
_CANCEL_MESSAGE = "Terminating processes on user request"
_CANCEL_REPEAT = 15.0  # seconds after which SIGINT is sent again if the log lacks the message


@dataclass(frozen=True)
class ClusterOptions:
    """Options of a run through Snakemake.

    Attributes:
        executor: name of a Snakemake executor plugin; 'snakemake-local' for this machine.
        jobs: largest number of jobs at once; None: MAX_JOBS on a cluster, one per core on this
            machine.
        gpus: device numbers of this machine; a cluster assigns its GPUs itself.
        without_gpus: whether to request no GPUs from a cluster (it has none that torch can use).
        fail_fast: whether to submit no more jobs after the first failure.
        retry: number of retries of a failed stage.
        extra_arguments: other arguments of Snakemake, such as the partition.
    """

    executor: str = "slurm"
    jobs: int | None = None
    gpus: tuple[str, ...] = ()
    without_gpus: bool = False
    fail_fast: bool = False
    retry: int = 0
    extra_arguments: tuple[str, ...] = field(default=())

    @property
    def is_local(self) -> bool:
        return self.executor == "snakemake-local"


def find_snakemake() -> str:
    """Path of Snakemake.

    It is searched in this order: $KDEP_SNAKEMAKE, the folder of this Python, the environment of
    `make cluster`, PATH.

    Raises:
        KdepError: Snakemake is not installed.
    """
    adjacent = Path(sys.executable).with_name("snakemake")
    places = (os.environ.get("KDEP_SNAKEMAKE"), adjacent, ROOT / ".venv-cluster/bin/snakemake")
    program = next((str(p) for p in places if p and Path(p).is_file()), None)
    program = program or shutil.which("snakemake")
    if program is None:
        raise KdepError(
            "Snakemake is not installed",
            fix="run `make cluster`, or install the extra: pip install 'kdep_bench[cluster]'",
        )
    return program


def check_executor(name: str) -> None:
    """Raises KdepError for an executor that is not one of EXECUTORS or a plugin of Snakemake."""
    if name in EXECUTORS:
        return
    plugins: list[str] = []
    with contextlib.suppress(KdepError):  # without Snakemake there are no plugins
        environment = Path(find_snakemake()).resolve().parents[1]
        installed = environment.glob(f"lib/python*/*-packages/{PLUGIN_PREFIX}*")
        folders = [path.name for path in installed if "-" not in path.name]  # not the metadata
        plugins = [n.removeprefix(PLUGIN_PREFIX).replace("_", "-") for n in folders]
    if name not in plugins:
        raise KdepError(
            f"unknown executor {name!r}",
            expected=f"one of {', '.join(sorted({*EXECUTORS, *plugins}))}",
            fix="correct --executor, or install the package snakemake-executor-plugin-NAME of the "
            "executor NAME next to Snakemake",
        )


def job_name_prefix(work: Path) -> str:
    """Prefix of the names of a work dir's jobs in Slurm; it depends on the path only."""
    return f"kdep-{text_hash(str(work.resolve()))}"


def queued_jobs(work: Path) -> dict[str, list[str]]:
    """Stage id -> ids of this user's Slurm jobs that are pending or running for it."""
    out: dict[str, list[str]] = {}
    listing = subprocess.run(
        ["squeue", "--noheader", "--me", "--format=%i|%j|%k"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for line in listing.stdout.splitlines():
        job, name, comment = [*line.split("|", 2), "", ""][:3]
        if name.startswith(job_name_prefix(work)):
            # Snakemake's Slurm plugin sets the comment rule_stage_wildcards_<stage id>.
            out.setdefault(comment.partition("_wildcards_")[2], []).append(job)
    return out


def run_lock(run_dir: Path) -> StageLock:
    """Lock that the coordinating process of a run holds until it ends."""
    return StageLock(run_dir, "run")


def snakefile_entry(
    stage: Stage, options: ClusterOptions, earlier_jobs: Sequence[str] = ()
) -> dict[str, Any]:
    """Entry of one stage for the Snakefile: its resources and Slurm options.

    `earlier_jobs`: ids of Slurm jobs that must end before the stage's job starts.
    """
    is_slurm = options.executor == "slurm"
    # Slurm assigns GPUs per node (gres). With another executor, Snakemake counts them (gpu).
    gres = f"gpu:{stage.gpus}" if is_slurm and stage.gpus else ""
    counts_gpus = not is_slurm and (not options.is_local or bool(options.gpus))
    nodes = 1 if options.is_local else stage.nodes
    default_cores = cpu_count() if options.is_local else CORES_OF_WHOLE_MACHINE
    limit = stage.time or stage.timeout  # seconds
    slurm_options = ["--open-mode=append"]
    if limit >= SHORT_JOB:
        # SIGTERM goes to the job's steps (the stage), early enough for it to save its state.
        slurm_options.append(f"--signal=TERM@{round(min(NOTICE, limit / 4))}")
    if earlier_jobs:
        slurm_options.append(f"--dependency=afterany:{':'.join(earlier_jobs)}")
    return {
        "needs": [],
        # Empty file that is made when the job has ended; its folder selects the Snakefile's rule.
        "token": f"done/nodes/{stage.id}" if nodes > 1 else f"done/{stage.id}",
        "threads": (stage.cpus or default_cores) * stage.processes,
        "mem_mb": stage.memory,
        "runtime": math.ceil(limit / 60),
        "nodes": nodes,
        "gres": gres,
        "gpu": stage.gpus if counts_gpus else 0,
        "slurm_extra": " ".join(slurm_options) if is_slurm else "",
    }


def run_plan(
    plan: Plan,
    work: Path,
    statuses: Mapping[str, state.Status],
    options: ClusterOptions,
    view: View | None = None,
) -> Outcome:
    """Runs the stages that must run according to `statuses` (from `state.statuses`).

    Raises:
        KdepError: Snakemake (or, on Slurm, sbatch) is missing, Snakemake failed before it ran any
            stage, or another process is running a stage that --force selects.
    """
    todo = [plan.stages[stage_id] for stage_id, status in statuses.items() if status.run]
    if not todo:
        return Outcome()
    return _Run(plan, work, statuses, todo, options, view or Silent()).run()


class _Run:
    """One run of Snakemake, monitored through the stage directories."""

    def __init__(
        self,
        plan: Plan,
        work: Path,
        statuses: Mapping[str, state.Status],
        todo: list[Stage],
        options: ClusterOptions,
        view: View,
    ) -> None:
        self.plan, self.work, self.options, self.view = plan, work, options, view
        self.todo = {s.id: replace(s, gpus=0) if options.without_gpus else s for s in todo}
        self.cost = Costs(plan, state.records(work, statuses)).estimates(todo)
        self.forced = [stage_id for stage_id in self.todo if statuses[stage_id].forced]
        self.outcome = Outcome()
        self.signal = 0
        self.run_token = os.urandom(8).hex()
        # Stage id -> modification time of its failed.json in ns, 0 without this file.
        self.failure_times: dict[str, int] = {}

    def run(self) -> Outcome:
        """Runs Snakemake until it ends; see `run_plan`."""
        program = find_snakemake()
        if self.options.executor == "slurm" and shutil.which("sbatch") is None:
            raise KdepError(
                "Slurm's command sbatch was not found on this machine",
                fix="run this on the cluster's login node",
            )
        self._discard_forced()
        self.failure_times = {i: self._failure_time(i) for i in self.todo}
        # Not mkdtemp: only the owner can read its folders, but a group may share the work dir.
        run_dir = real_folder(self.work / RUNS_DIR) / f"{self.plan.name}-{os.urandom(4).hex()}"
        run_dir.mkdir()
        lock = run_lock(run_dir)
        lock.take()
        self._write_inputs(run_dir)
        log = run_dir / "snakemake.log"
        self.view.begin(len(self.todo), lambda: sum(self.cost[i] for i in self.todo))
        self.view.note(f"Snakemake's log: {log}")
        with open(log, "ab") as f:
            child = _start([program, *self._arguments(run_dir)], f)
        try:
            self._watch(child, log)
        finally:
            self.view.end()
            lock.free()
        self._sort_unfinished(child.returncode, log)
        if self.outcome.ok:
            shutil.rmtree(run_dir, ignore_errors=True)
        return self.outcome

    def _discard_forced(self) -> None:
        """Removes the outputs of stages that --force selects: their jobs do not know the option."""
        for stage_id in self.forced:
            lock = StageLock(self.work, stage_id)
            if not lock.take():
                raise KdepError(
                    f"the stage {stage_id} is to be rerun, but {lock.owner()} is running it now",
                    fix="wait until it ends, or stop that process",
                )
            try:
                real_folder(state.folder(self.work, stage_id), "stage directory")
                attempt = attempts.begin(
                    self.work, stage_id, resume=False, still_held=lock.still_held
                )
                attempt.close(discard=True)
            finally:
                lock.free()

    def _write_inputs(self, run_dir: Path) -> None:
        """Writes the plan, which the jobs read, and the Snakefile's configuration."""
        write_plan(run_dir / "plan.json", self.plan.name, self.todo.values())
        earlier_jobs = queued_jobs(self.work) if self.options.executor == "slurm" else {}
        stages = {}
        for stage_id, stage in self.todo.items():
            stages[stage_id] = snakefile_entry(stage, self.options, earlier_jobs.get(stage_id, ()))
            stages[stage_id]["needs"] = sorted(
                u for u in set(stage.needs.values()) if u in self.todo
            )
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        command = ["env", f"PYTHONPATH={path}", f"{RUN_VARIABLE}={self.run_token}"]
        command += [sys.executable, "-m", "kdep_bench.engine.stage"]
        command += ["--plan", str(run_dir / "plan.json"), "--work-dir", str(self.work)]
        if self.options.is_local and self.options.gpus:
            command += ["--gpus", ",".join(self.options.gpus)]
        content = {
            "stages": stages,
            "command": shlex.join(command),
            "executor": self.options.executor,
        }
        write_json(run_dir / RUN_FILE, content)

    def _arguments(self, run_dir: Path) -> list[str]:
        """Command-line arguments of Snakemake."""
        options = self.options
        out = ["--snakefile", str(SNAKEFILE), "--configfile", str(run_dir / RUN_FILE)]
        out += ["--directory", str(run_dir), "--nocolor", "--retries", str(options.retry)]
        out += [] if options.fail_fast else ["--keep-going"]
        if options.is_local:
            out += ["--executor", "local", "--cores", str(cpu_count()), "--jobs"]
            out += [str(options.jobs or cpu_count())]
            out += ["--resources", f"gpu={len(options.gpus)}"] if options.gpus else []
        else:
            out += ["--executor", options.executor, "--jobs", str(options.jobs or MAX_JOBS)]
        if options.executor == "slurm":
            out += ["--slurm-requeue", "--slurm-jobname-prefix", job_name_prefix(self.work)]
        return [*out, *options.extra_arguments]

    # --- watching ---

    def _watch(self, child: subprocess.Popen[bytes], log: Path) -> None:
        """Waits until Snakemake ends; reports finished stages and passes signals on."""
        requested_at = 0.0  # time.monotonic() of the last request to cancel

        def request_cancel() -> None:
            nonlocal requested_at
            requested_at = time.monotonic()
            # Snakemake cancels its jobs on SIGINT, and merely waits for them on SIGTERM.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)

        def on_signal(number: int, _: Any) -> None:
            if not self.signal:
                request_cancel()
            self.signal = self.signal or number

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old_handlers = {number: signal.signal(number, on_signal) for number in numbers}
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL)
                    return
                # On a busy machine Snakemake can miss a SIGINT, which is then repeated. If it has
                # begun to cancel (see the log), a second SIGINT would leave its jobs running.
                is_late = self.signal and time.monotonic() > requested_at + _CANCEL_REPEAT
                if is_late and _CANCEL_MESSAGE not in log.read_text(errors="replace"):
                    request_cancel()
                self._poll_stages()
                self.view.refresh()
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)

    def _poll_stages(self) -> None:
        """Reports stages that have finished or failed since the last call."""
        for stage_id, stage in list(self.todo.items()):
            out = state.folder(self.work, stage)
            if (out / state.STAGE).exists():
                record, _ = state.finished(stage, self.work)
                if record is not None:
                    del self.todo[stage_id]
                    ran_here = record.get("run") == self.run_token
                    (self.outcome.ran if ran_here else self.outcome.elsewhere).append(stage_id)
                    self.view.finished(stage, record, len(self.todo))
                    continue
            failed_at = self._failure_time(stage_id)
            if failed_at != self.failure_times[stage_id] and failed_at:
                self.failure_times[stage_id] = failed_at
                failure = state.failure(out)
                if failure is not None:
                    self.outcome.failed[stage_id] = failure["error"]
                    self.view.failed(stage, failure["error"], out / state.LOG)

    def _failure_time(self, stage_id: str) -> int:
        try:
            return os.stat(state.folder(self.work, stage_id) / state.FAILED).st_mtime_ns
        except OSError:
            return 0

    # --- end ---

    def _sort_unfinished(self, code: int, log: Path) -> None:
        """Sorts the stages that did not finish into failed, skipped and unfinished.

        Args:
            code: exit code of Snakemake.
            log: its log.

        Raises:
            KdepError: Snakemake failed before it ran any stage.
        """
        self._poll_stages()
        outcome, failures = self.outcome, self.outcome.failed
        outcome.signal = self.signal
        outcome.failed = {i: failures[i] for i in failures if i in self.todo}
        if self.signal:
            outcome.failed, outcome.unfinished = {}, sorted(self.todo)
            return
        if (
            not (outcome.ran or outcome.elsewhere or outcome.failed)
            and code
            and "Error in rule" not in log.read_text(errors="replace")
        ):
            raise KdepError(
                f"Snakemake ended with exit code {code} and ran no stage ({_last_line(log)})",
                fix=f"read {log}",
            )
        for stage_id, stage in self.todo.items():  # upstream stages come first
            if stage_id in outcome.failed:
                continue
            cause = next(
                (u for u in stage.needs.values() if u in outcome.failed or u in outcome.skipped),
                None,
            )
            if cause is not None:
                outcome.skipped[stage_id] = f"skipped, because {cause} " + (
                    "failed" if cause in outcome.failed else "was skipped"
                )
            elif outcome.failed and self.options.fail_fast:
                outcome.skipped[stage_id] = (
                    "not started, because another stage failed (--fail-fast)"
                )
            else:
                outcome.failed[stage_id] = str(
                    KdepError(
                        "the cluster job ended without a result and without an error message: it "
                        "was killed, ran out of memory, or never started",
                        fix=f"read {log} and the job's own log file, whose path it contains",
                    )
                )
                out = state.folder(self.work, stage)
                stage_process.note_failure(out, outcome.failed[stage_id], stage)
                self.view.failed(stage, outcome.failed[stage_id], out / state.LOG)


def _start(command: list[str], log: Any) -> subprocess.Popen[bytes]:
    """Starts Snakemake in a new session, with its output in the file `log`."""
    libc = ctypes.CDLL(None)

    def detach() -> None:
        os.setsid()
        # If this process dies, Snakemake must not submit more jobs; submitted jobs continue.
        libc.prctl(stage_process.PR_SET_PDEATHSIG, signal.SIGKILL)
        # A process that was started with `nohup` or `&` ignores SIGINT, and so would its child.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=detach
    )


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"

"""The stage command: runs one stage of a plan file, in a cluster job or by hand.

`python -m kdep_bench.engine.stage --plan plan.json --stage ID --work-dir W` acquires the stage's
lock (and waits while another process holds it), exits at once if the stage is done, checks its
inputs, runs it and writes its stage.json. In a Slurm job it requests a requeue if the job is
preempted, or if the job reaches its time limit and the stage can resume.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdep_bench.devices import show_gpus
from kdep_bench.engine import ddp, stage_process, state, worker
from kdep_bench.engine.lock import StageLock, Watch
from kdep_bench.engine.machine import cpu_count, git_revision
from kdep_bench.errors import KdepError, fault_text, unknown_name
from kdep_bench.files import read_strict, write_json
from kdep_bench.safe_files import open_regular, real_folder
from kdep_bench.suite.graph import Plan, Stage, make_stage_id

PLAN_SCHEMA = 1
_SOURCE_KEY = "rooms"  # key of Stage.source_paths in plan files, kept so that old ones are readable
RUN_VARIABLE = "KDEP_RUN"  # environment variable with `stage_process.StageRequest.run`
NOTICE = 120.0  # largest number of seconds from the signal to a job until its end
_SLURM_LATE = 60.0  # seconds that Slurm may send the signal earlier (sbatch(1), --signal)
_POLL = 2.0  # seconds between checks of a lock that another process holds
# The fix for a wrong plan file. A run on a cluster writes its own plan file.
_FIX = (
    "write the plan again (kdep-bench run SUITE --write-plan FILE, or start the cluster run again)"
)
EPILOG = """Exit codes: 0 done (now or before), 1 failed (see failed.json and stage.log),
2 wrong plan file or argument, 75 another process is running it, 143 interrupted (run it again to
resume)."""


# --- the plan as a file --------------------------------------------------------------------------


def write_plan(path: Path, name: str, stages: Iterable[Stage]) -> None:
    """Writes stages as JSON, with the git revision that planned them."""
    rows = [_row(s) for s in stages]
    write_json(path, {"schema": PLAN_SCHEMA, "name": name, "git": git_revision(), "stages": rows})


def _row(stage: Stage) -> dict[str, Any]:
    """A stage as JSON; the key for `source_paths` is _SOURCE_KEY."""
    row = asdict(stage) | {"needs": dict(stage.needs)}
    return row | {_SOURCE_KEY: list(row.pop("source_paths"))}


def read_stage(path: Path, stage_id: str) -> tuple[Stage, str]:
    """The stage `stage_id` of the plan file `path`, and the git revision that planned it.

    Raises:
        KdepError: the file is missing or damaged, has no such stage, or the stage's content does
            not fit its id.
    """
    content = read_strict(path)
    if not isinstance(content, dict) or content.get("schema") != PLAN_SCHEMA:
        raise KdepError(
            f"{path} is not a plan file of schema {PLAN_SCHEMA}",
            fix=f"{_FIX} with this version",
        )
    stages, revision = content.get("stages"), content.get("git")
    entries = stages if isinstance(stages, list) else []
    rows = {r["id"]: r for r in entries if isinstance(r, dict) and type(r.get("id")) is str}
    if len(rows) != len(entries) or not rows or not isinstance(revision, str):
        raise KdepError(
            f"the plan file {path} is damaged: its stages or its revision are missing, or a stage "
            "occurs twice",
            fix=_FIX,
        )
    if stage_id not in rows:
        raise unknown_name("stage", stage_id, rows)
    try:
        row = dict(rows[stage_id])
        if _SOURCE_KEY in row:
            row["source_paths"] = row.pop(_SOURCE_KEY)
        stage = TypeAdapter(Stage).validate_python(row)
    except ValidationError as e:
        fault = e.errors(include_url=False)[0]
        place = ".".join(str(p) for p in fault["loc"]).replace("source_paths", _SOURCE_KEY)
        raise KdepError(
            f"the plan file {path} is damaged: the stage {stage_id} has a wrong {place} "
            f"({fault_text(fault)})",
            fix=_FIX,
        ) from None
    computed_id = make_stage_id(
        Plan(""), stage.kind, stage.name, stage.version, stage.spec, stage.needs
    )
    if computed_id != stage_id:
        raise KdepError(
            f"the plan file {path} is damaged: the stage {stage_id} has the content of "
            f"{computed_id}",
            fix=_FIX,
        )
    return stage, revision


# --- GPUs ----------------------------------------------------------------------------------------


def take_gpus(gpus: Sequence[str], count: int) -> tuple[str, ...]:
    """Waits until `count` of `gpus` are free, and locks them until this process ends.

    Needed with schedulers that count GPUs but do not assign device numbers. If too few are free,
    all are released before the next try: otherwise two stages could wait for each other.

    Returns:
        the device numbers of the locked GPUs.

    Raises:
        KdepError: `gpus` has fewer than `count` devices.
    """
    lock_dir = real_folder(Path(tempfile.gettempdir()) / f"kdep_gpus.{os.getuid()}")
    if count > len(gpus):
        raise KdepError(
            f"the stage needs {count} GPUs, but this machine has {len(gpus)}",
            fix="lower runtime.gpus in the suite",
        )
    while True:
        held: dict[str, int] = {}
        for gpu in gpus:
            fd = open_regular(lock_dir / re.sub(r"\W", "_", gpu), os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[gpu] = fd
            except BlockingIOError:
                os.close(fd)
            if len(held) == count:
                return tuple(held)
        for fd in held.values():
            os.close(fd)
        time.sleep(_POLL)


# --- Slurm ---------------------------------------------------------------------------------------


def _job() -> dict[str, str]:
    """Slurm's description (scontrol show job) of this process's job; empty outside a job."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    result = subprocess.run(
        ["scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return dict(re.findall(r"(\w+)=(\S+)", result.stdout))


def requeue_after_stop(stage: Stage, job: dict[str, str], now: datetime) -> tuple[bool, str | None]:
    """Decides what to do after a stage was stopped by SIGTERM in a Slurm job.

    A cancelled job is not requeued and has no error. A preempted job is requeued. A job at its time
    limit is requeued if the stage can resume and all its jobs so far took less than the stage's
    timeout; otherwise the stage has failed.

    Args:
        stage: the stage.
        job: Slurm's description of the job; see `_job`.
        now: the local time.

    Returns:
        (whether to requeue the job, error or None).
    """
    if job.get("JobState") != "RUNNING":
        return False, None
    if job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"):
        return True, None
    try:
        begin, end = (datetime.fromisoformat(job[k]) for k in ("StartTime", "EndTime"))
    except (KeyError, ValueError):  # the job has no time limit
        return False, None
    if (end - now).total_seconds() > NOTICE + _SLURM_LATE + _POLL:
        return False, None
    limit, n_jobs = (end - begin).total_seconds(), int(job.get("Restarts", 0)) + 1
    if stage.resumable and limit * n_jobs < stage.timeout:
        return True, None
    error = KdepError(
        f"the stage was stopped at its job's time limit of {limit:.0f} s (in job number {n_jobs})",
        expected=f"an end within runtime.timeout['{stage.kind}'] = {stage.timeout:g} s"
        if stage.resumable
        else "an end within one job, because it cannot resume",
        fix=f"read its {state.LOG}; if it was not stuck, raise runtime.timeout or runtime.time",
    )
    return False, str(error)


class TimeLimitReached(stage_process.Stopped):
    """The stage reached its timeout."""


def _on_time_limit(*_: object) -> None:
    raise TimeLimitReached


def _exit_code_after_stop(stage: Stage, work: Path) -> int:
    """Requeues the job or writes failed.json (see `requeue_after_stop`); returns the exit code."""
    job = _job()
    requeue, fault = requeue_after_stop(stage, job, datetime.now())
    if fault:
        stage_process.note_failure(state.folder(work, stage), fault, stage)
        return stage_process.FAULT
    return _requeue(stage, work, job) if requeue else worker.STOPPED


def _requeue(stage: Stage, work: Path, job: dict[str, str]) -> int:
    """Asks Slurm to requeue the job; returns the exit code."""
    (state.folder(work, stage) / state.FAILED).unlink(missing_ok=True)
    done = subprocess.run(["scontrol", "requeue", job["JobId"]], check=False).returncode == 0
    print(f"--- {'requeued' if done else 'could not be requeued'}", flush=True)
    return worker.STOPPED


# --- the command ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m kdep_bench.engine.stage",
        description="Run one stage of a plan file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--plan", type=Path, required=True, help="plan file from run_suite.py --write-plan"
    )
    p.add_argument("--stage", required=True, metavar="ID", help="stage id")
    p.add_argument("--work-dir", type=Path, required=True, help="stage directories")
    p.add_argument(
        "--gpus", default="", help="choose free GPUs among these, e.g. 0,1 (not on Slurm)"
    )
    p.add_argument("--no-wait", action="store_true", help="exit with 75 if another process runs it")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    work = args.work_dir.absolute()
    try:
        if ddp.leave_launcher() != (0, 1):
            raise KdepError(
                "this command was started by torchrun, but it starts the processes of its stage "
                "itself",
                fix="start it without torchrun; the number of processes is runtime.processes in "
                "the suite",
            )
        stage, git = read_stage(args.plan, args.stage)
        if state.finished(stage, work)[0] is not None:
            return worker.DONE
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stage_process.stop)
        signal.signal(signal.SIGALRM, _on_time_limit)
        try:
            code = _run(_request(stage, work, git, args.gpus), not args.no_wait)
        except TimeLimitReached:
            error = KdepError(
                f"the stage was stopped after its time limit of {stage.timeout:g} s",
                fix=f"read its {state.LOG}; if it was not stuck, raise "
                f"runtime.timeout['{stage.kind}']",
            )
            stage_process.note_failure(state.folder(work, stage), str(error), stage)
            return stage_process.FAULT
        except stage_process.Stopped:
            return _exit_code_after_stop(stage, work)
        # Slurm sends its signal to the steps of a job. With several nodes these are the ranks, so
        # this process only sees that they failed.
        if code == stage_process.FAULT and stage.nodes > 1:
            job = _job()
            if requeue_after_stop(stage, job, datetime.now())[0]:
                return _requeue(stage, work, job)
        return code
    except KdepError as e:
        print(f"stage: {e}", file=sys.stderr)
        return 2


def _request(stage: Stage, work: Path, git: str, gpus: str) -> stage_process.StageRequest:
    """The request for the stage, with the cores and GPUs that this process may use."""
    in_slurm = "SLURM_JOB_ID" in os.environ
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if stage.gpus else ""
    visible = tuple(g for g in visible_devices.split(",") if g)
    if gpus and stage.gpus and not in_slurm:
        visible = take_gpus(gpus.split(","), stage.gpus)
    show_gpus(visible)
    available_cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or cpu_count())
    stage = replace(stage, cpus=stage.cpus or available_cores)
    stage_process.set_threads(stage.cpus)
    return stage_process.StageRequest(
        stage, work, gpus=visible, git=git, run=os.environ.get(RUN_VARIABLE, "")
    )


def _run(request: stage_process.StageRequest, wait: bool) -> int:
    """Runs the stage within its time limit; returns the exit code.

    `wait`: while another process runs the stage, wait instead of returning BUSY.
    """
    stage_id = request.stage.id
    terminal = os.dup(2)  # `run_stage` redirects standard error to the stage's log
    watch = Watch(request.work)
    while True:
        signal.setitimer(signal.ITIMER_REAL, request.stage.timeout)
        code, sentence = worker.run_stage(request, _ignore_progress)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if code != worker.BUSY or not wait:
            break
        owner = StageLock(request.work, stage_id).owner()
        print(f"{stage_id}: waiting, {owner} is running it", flush=True)
        while watch.held(stage_id):
            time.sleep(_POLL)
    if sentence:
        os.write(terminal, f"{stage_id}: {sentence}\n".encode())
    return code


def _ignore_progress(done: int, total: int, note: str = "") -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())

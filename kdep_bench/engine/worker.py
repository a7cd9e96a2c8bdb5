"""Runs one stage in this process: lock, inputs, function, result.

`run_stage` takes the stage's lock, checks the inputs, calls the function, and writes stage.json or
failed.json, in local and cluster runs. `main` is the body of a process of the local pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdep_bench import trackers
from kdep_bench.allocator import keep_freed_memory
from kdep_bench.devices import check_gpus, show_gpus
from kdep_bench.engine import attempts, state
from kdep_bench.engine.environment import cpu_seconds, environment, largest_peak, peak_gpu
from kdep_bench.engine.lock import StageLock
from kdep_bench.engine.stage_process import (
    BUSY,
    DONE,
    FAULT,
    ORPHAN_GRACE,
    PR_SET_PDEATHSIG,
    STOPPED,
    Reporter,
    StageRequest,
    Stopped,
    check_outputs,
    error_text,
    failure_record,
    locate,
    note_failure,
    set_threads,
    stop,
    utc_now,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json
from kdep_bench.safe_files import real_folder
from kdep_bench.suite import data_identity


def main(request: StageRequest, pipe: Any) -> None:
    """Body of a process of the local pool: runs one stage and exits.

    Args:
        request: the stage.
        pipe: writing end of the pipe to the runner, for progress and errors; None for no reports.
    """
    os.setsid()
    # If the fork server or the runner dies, the stage must end too: nothing would monitor it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if pipe is not None:
        threading.Thread(target=_end_with_reader, args=(pipe.fileno(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    code = FAULT
    try:
        set_threads(request.stage.cpus)
        show_gpus(request.gpus)  # hides all other GPUs
        reporter = Reporter(None if pipe is None else pipe.fileno())
        code, sentence = run_stage(request, reporter)
        if sentence:
            reporter.report_failure(sentence)
    except Stopped:
        code = STOPPED
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Skip the shutdown of the interpreter: with the toolkits loaded it takes as long as a
        # small stage.
        os._exit(code)


def _end_with_reader(fd: int) -> None:
    """Ends this process group when the runner, which reads the pipe, has ended."""
    poll = select.poll()
    poll.register(fd, 0)  # reports only errors, such as a pipe without a reader
    while not poll.poll():
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(ORPHAN_GRACE)
    os.killpg(0, signal.SIGKILL)


def run_stage(request: StageRequest, progress: Callable[..., None]) -> tuple[int, str | None]:
    """Runs one stage and writes its stage.json or failed.json.

    Returns:
        (DONE, None); (BUSY, None) if another process runs it or took it over; (FAULT, error).

    Raises:
        Stopped: SIGTERM arrived. The files of the attempt are kept, so that the stage can resume.
    """
    stage, work = request.stage, request.work
    out = state.folder(work, stage)
    lock = StageLock(work, stage.id)
    attempt: attempts.Attempt | None = None
    is_log_open = False
    try:
        real_folder(out, "stage directory")
        # If another process takes the stage over, SIGTERM ends this one.
        if not lock.take(on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM)):
            return BUSY, None
    except (OSError, KdepError) as e:
        return _fail(None, request, error_text(e), lock.still_held)
    try:
        record, fault = state.finished(stage, work)
        if record is not None and not request.force:
            return DONE, None
        if fault:
            state.mark_damaged(out)
        # Never resume from damaged files: the new stage.json would have checksums of the damage.
        from_scratch = request.force or (out / state.DAMAGED).exists()
        attempt = attempts.begin(
            work, stage.id, stage.resumable and not from_scratch, lock.still_held
        )
        _log_to(attempt.open_log(), request)
        is_log_open = True
        return (DONE if _execute(request, attempt, progress, lock.still_held) else BUSY), None
    except attempts.TakenOver:
        return BUSY, None
    except Stopped:
        if not lock.still_held():
            return BUSY, None
        if attempt is not None:
            with contextlib.suppress(OSError, KdepError):
                attempt.commit(lock.still_held)
        raise
    except Exception as e:
        if not lock.still_held():  # another process has taken the stage over
            return BUSY, None
        with contextlib.suppress(OSError, ValueError):
            if is_log_open:  # the traceback goes into the log only
                traceback.print_exc()
        return _fail(attempt, request, error_text(e), lock.still_held)
    except SystemExit as e:
        sentence = f"the stage called sys.exit({e.code!r}) instead of returning its outputs"
        sentence = str(KdepError(sentence, fix=f"read its {state.LOG}"))
        return _fail(attempt, request, sentence, lock.still_held)
    finally:
        if attempt is not None:
            attempt.close(discard=not lock.still_held())
        lock.free()


def _log_to(fd: int, request: StageRequest) -> None:
    """Sends this process's output, and that of its children, to the stage's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    print(f"--- {request.stage.id} at {utc_now()}, {request.stage.cpus} threads, pid {os.getpid()}")
    preload = sys.modules.get("kdep_bench.engine.preload")
    if preload is not None and preload.FAILURE:
        print(f"the fork server could not import the toolkits:\n{preload.FAILURE}")


def _execute(
    request: StageRequest,
    attempt: attempts.Attempt,
    progress: Callable[..., None],
    still_held: Callable[[], bool],
) -> bool:
    """Calls the stage's function and writes stage.json; False if the lock was lost meanwhile."""
    stage, work = request.stage, request.work
    for upstream in sorted(set(stage.needs.values())):
        note = state.verify_input(work, upstream)
        if note:
            print(note)
    inputs = {role: state.folder(work, i).resolve() for role, i in stage.needs.items()}
    # Raises KdepError if the user's data differ from the plan, before or after the function.
    data_guard = data_identity.Guard(stage, work, attempt.path)
    data_guard.before()
    started, start_s = utc_now(), time.time() - request.submitted
    wall_start, cpu_start = time.monotonic(), cpu_seconds()
    trackers.set_backends(stage.trackers, stage.id)  # child processes inherit them
    outputs, ranks = _call(request, inputs, attempt.path.resolve(), progress)
    wall = time.monotonic() - wall_start
    outputs = data_guard.after(outputs)
    check_outputs(stage, outputs)
    files, summary_of_others = state.list_files(attempt.path)
    targets = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usage = [resource.getrusage(target) for target in targets]
    if not still_held():
        return False
    record = {
        "schema": state.SCHEMA,
        "id": stage.id,
        "run": request.run,
        "kind": stage.kind,
        "name": stage.name,
        "spec": stage.spec,
        "needs": dict(stage.needs),
        "version": stage.version,
        "function": stage.function,
        "code": state.code_hash(stage.source_paths),
        "started": started,
        "finished": utc_now(),
        "wall_s": round(wall, 3),
        "cpu_s": round(sum(r["cpu_s"] for r in ranks) or cpu_seconds() - cpu_start, 3),
        "start_s": round(start_s, 3),
        # Linux reports ru_maxrss in KiB.
        "peak_rss": max([u.ru_maxrss * 1024 for u in usage] + [r["peak_rss"] for r in ranks]),
        **largest_peak([peak_gpu(), *ranks]),
        "environment": environment(request) | _distributed(ranks),
        "outputs": outputs,
        **state.data_fingerprint(work, stage),
        "files": files,
        "rest": summary_of_others,
    }
    attempt.write(state.STAGE, state.stage_text(record))
    return attempt.commit(still_held)


def _call(
    request: StageRequest, inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> tuple[Any, list[dict[str, Any]]]:
    """Calls the stage function.

    Returns:
        its outputs, and the usage of each rank (see `ddp.launch`); [] for a single process.
    """
    from kdep_bench.engine import ddp

    if ddp.shape(request.stage) != (1, 1):
        return ddp.launch(request, inputs, out, progress)
    keep_freed_memory()
    function = locate(request.stage.function)
    check_gpus(request.gpus)  # after the import of the function, which imports torch if needed
    # A deep copy through JSON: if the function changes its spec, the record stays as planned.
    spec = json.loads(canonical_json(request.stage.spec))
    if request.stage.kind == "prepare":
        spec.pop(data_identity.CONTENT, None)
    if request.stage.about:
        spec["about"] = request.stage.about
    return function(spec, inputs, out, progress), []


def _distributed(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"processes": len(ranks), "device": ranks[0]["device"]} if ranks else {}


def _fail(
    attempt: attempts.Attempt | None,
    request: StageRequest,
    sentence: str,
    still_held: Callable[[], bool],
) -> tuple[int, str | None]:
    """Writes failed.json and renames the attempt's directory to the stage's.

    Returns:
        (FAULT, error); (BUSY, None) if another process has taken the stage over.
    """
    try:
        if attempt is not None:
            attempt.fail(failure_record(sentence, request.stage))
            if not attempt.commit(still_held):
                return BUSY, None
            return FAULT, sentence
    except (OSError, KdepError) as e:
        print(f"the directory of this attempt could not be renamed ({e})", file=sys.stderr)
    note_failure(state.folder(request.work, request.stage), sentence, request.stage)
    return FAULT, sentence

"""The child's side: one stage, in a process and session of its own.

`run_stage` is the engine-neutral entry: it takes the stage's lock, checks the inputs, calls the
function, and writes stage.json or failed.json. `main` wraps it for the local pool.
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
    failure_record,
    locate,
    note_failure,
    sentence_of,
    set_threads,
    stop,
    utc_now,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json
from kdep_bench.safe_files import real_folder
from kdep_bench.suite import data_identity


def main(order: StageRequest, pipe: Any) -> None:
    """Process body in the local pool. Never returns."""
    os.setsid()
    # Nobody would watch an orphan: the stage goes when the fork server dies, or the runner.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if pipe is not None:
        threading.Thread(target=_leave_with_reader, args=(pipe.fileno(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    code = FAULT
    try:
        set_threads(order.stage.cpus)
        # A stage without a GPU slot sees no GPU at all.
        show_gpus(order.gpus)
        reporter = Reporter(None if pipe is None else pipe.fileno())
        code, sentence = run_stage(order, reporter)
        if sentence:
            reporter.tell(sentence)
    except Stopped:
        code = STOPPED
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # No interpreter shutdown: with the toolkits loaded it costs as much as a small stage.
        os._exit(code)


def _leave_with_reader(fd: int) -> None:
    """Ends this process group once the pipe's reader, the runner, is gone."""
    poll = select.poll()
    poll.register(fd, 0)  # errors only, and the reader's end closing is one
    while not poll.poll():
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(ORPHAN_GRACE)
    os.killpg(0, signal.SIGKILL)


def run_stage(order: StageRequest, progress: Callable[..., None]) -> tuple[int, str | None]:
    """Runs one stage to its stage.json.

    Returns:
        (DONE, None), (BUSY, None) when another process has it or took it over, or
        (FAULT, sentence).
    """
    stage, work = order.stage, order.work
    out = state.folder(work, stage)
    lock = StageLock(work, stage.id)
    attempt: attempts.Try | None = None
    logs = False
    try:
        real_folder(out, "stage directory")
        # Taken for dead and taken over: this process goes, by its own SIGTERM handler.
        if not lock.take(on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM)):
            return BUSY, None
    except (OSError, KdepError) as e:
        return _fail(None, order, sentence_of(e), lock.mine)
    try:
        record, fault = state.finished(stage, work)
        if record is not None and not order.force:
            return DONE, None
        if fault:
            state.mark_damaged(out)
        # Nothing is resumed from what was found damaged: the damage would get a good checksum.
        afresh = order.force or (out / state.DAMAGED).exists()
        attempt = attempts.begin(work, stage.id, stage.resumable and not afresh, lock.mine)
        _log_to(attempt.open_log(), order)
        logs = True
        return (DONE if _execute(order, attempt, progress, lock.mine) else BUSY), None
    except attempts.Lost:
        return BUSY, None
    except Stopped:
        if not lock.mine():
            return BUSY, None
        if attempt is not None:
            with contextlib.suppress(OSError, KdepError):
                attempt.settle(lock.mine)
        raise
    except Exception as e:
        if not lock.mine():  # the new owner has renamed the directory under this one's hands
            return BUSY, None
        with contextlib.suppress(OSError, ValueError):
            if logs:  # a traceback is for the log alone
                traceback.print_exc()
        return _fail(attempt, order, sentence_of(e), lock.mine)
    except SystemExit as e:
        said = f"the stage called sys.exit({e.code!r}) instead of returning its outputs"
        said = str(KdepError(said, fix=f"read its {state.LOG}"))
        return _fail(attempt, order, said, lock.mine)
    finally:
        if attempt is not None:
            attempt.close(discard=not lock.mine())
        lock.free()


def _log_to(fd: int, order: StageRequest) -> None:
    """Sends this process's output, and that of its children, to the stage's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    print(f"--- {order.stage.id} at {utc_now()}, {order.stage.cpus} threads, pid {os.getpid()}")
    preload = sys.modules.get("kdep_bench.engine.preload")
    if preload is not None and preload.FAILURE:
        print(f"the fork server could not import the toolkits:\n{preload.FAILURE}")


def _execute(
    order: StageRequest,
    attempt: attempts.Try,
    progress: Callable[..., None],
    mine: Callable[[], bool],
) -> bool:
    """Calls the stage's function and writes stage.json; False if the lock was lost meanwhile."""
    stage, work = order.stage, order.work
    for up in sorted(set(stage.needs.values())):
        left_out = state.verify_input(work, up)
        if left_out:
            print(left_out)
    inputs = {role: state.folder(work, up).resolve() for role, up in stage.needs.items()}
    guard = data_identity.Guard(stage, work, attempt.path)
    guard.before()
    started, begun = utc_now(), time.time()
    clock, cpu = time.monotonic(), cpu_seconds()
    trackers.set_backends(stage.trackers, stage.id)  # child processes inherit them
    outputs, ranks = _call(order, inputs, attempt.path.resolve(), progress)
    wall = time.monotonic() - clock
    outputs = guard.after(outputs)
    check_outputs(stage, outputs)
    files, rest = state.take_stock(attempt.path)
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    if not mine():
        return False
    record = {
        "schema": state.SCHEMA,
        "id": stage.id,
        "run": order.run,
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
        "cpu_s": round(sum(r["cpu_s"] for r in ranks) or cpu_seconds() - cpu, 3),
        "start_s": round(begun - order.submitted, 3),
        # Linux counts kibibytes.
        "peak_rss": max([u.ru_maxrss * 1024 for u in usage] + [r["peak_rss"] for r in ranks]),
        **largest_peak([peak_gpu(), *ranks]),
        "environment": environment(order) | _distributed(ranks),
        "outputs": outputs,
        **state.data_read(work, stage),
        "files": files,
        "rest": rest,
    }
    attempt.write(state.STAGE, state.stage_text(record))
    return attempt.settle(mine)


def _call(
    order: StageRequest, inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> tuple[Any, list[dict[str, Any]]]:
    """The function's outputs and, where it ran as several processes, what each of them used."""
    from kdep_bench.engine import ddp

    if ddp.shape(order.stage) != (1, 1):
        return ddp.launch(order, inputs, out, progress)
    keep_freed_memory()
    function = locate(order.stage.function)
    check_gpus(order.gpus)  # by now torch is in memory, if the function needs it
    # A deep copy by way of JSON: whatever the function does to its spec, the record is the plan's.
    spec = json.loads(canonical_json(order.stage.spec))
    if order.stage.kind == "prepare":
        spec.pop(data_identity.CONTENT, None)
    if order.stage.about:
        spec["about"] = order.stage.about
    return function(spec, inputs, out, progress), []


def _distributed(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"processes": len(ranks), "device": ranks[0]["device"]} if ranks else {}


def _fail(
    attempt: attempts.Try | None, order: StageRequest, sentence: str, mine: Callable[[], bool]
) -> tuple[int, str | None]:
    """Leaves what the try made so far, with failed.json, as the stage's directory."""
    try:
        if attempt is not None:
            attempt.fail(failure_record(sentence, order.stage))
            if not attempt.settle(mine):
                return BUSY, None
            return FAULT, sentence
    except (OSError, KdepError) as e:
        print(f"the directory of this attempt could not be renamed ({e})", file=sys.stderr)
    note_failure(state.folder(order.work, order.stage), sentence, order.stage)
    return FAULT, sentence

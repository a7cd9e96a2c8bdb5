"""The child's side: one stage, in a process and session of its own.

`run_stage` is the engine-neutral entry: it takes the stage's lock, checks the inputs, calls the
function, and writes stage.json or failed.json. `main` wraps it for the local pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from kdep_bench import trackers
from kdep_bench.allocator import keep_freed_memory
from kdep_bench.devices import check_gpus, show_gpus
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, write_atomic
from kdep_bench.registry import import_fix
from kdep_bench.safe_files import is_real_folder, real_folder
from kdep_bench.suite import data_identity, state, tries
from kdep_bench.suite.lock import StageLock
from kdep_bench.suite.plan import Stage

DONE, FAULT, BUSY, STOPPED = 0, 1, 75, 143
PACKAGES = (
    "torch",
    "torchvision",
    "mmengine",
    "mmcv-lite",
    "mmcv",
    "mmdet",
    "mmsegmentation",
    "mmpretrain",
    "timm",
    "numpy",
    "scikit-learn",
    "pycocotools",
    "opencv-python-headless",
    "kdep_bench",
)
ORPHAN_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Stopped(BaseException):
    """SIGTERM arrived: unwinds the stage so that `finally` blocks run."""


@dataclass(frozen=True)
class Order:
    """What a worker is asked to do; everything in it is plain data.

    Attributes:
        stage: the stage; `cpus` already a true number.
        work: the work dir.
        force: run although it is done.
        gpus: device numbers this stage may see.
        git: revision of the repository, '' if unknown.
        run: a word of the run that asks, kept in stage.json: by it a run knows its own stages.
        submitted: time.time() of the request, for the measured start overhead.
    """

    stage: Stage
    work: Path
    force: bool = False
    gpus: tuple[str, ...] = ()
    git: str = ""
    run: str = ""
    submitted: float = field(default_factory=time.time)


class Reporter:
    """The `progress(done, total, note)` a stage calls: cheap, at most one line every 0.3 s.

    Writes JSON lines to a non-blocking pipe; a reader that is gone or slow never holds the stage.
    """

    def __init__(self, fd: int | None, every: float = 0.3) -> None:
        self.fd, self.every, self._next = fd, every, 0.0
        if fd is not None:
            os.set_blocking(fd, False)

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self.fd is None or (now < self._next and done != total):
            return
        self._next = now + self.every
        self._send([int(done), int(total), str(note)[:200]])

    def tell(self, sentence: str) -> None:
        """Sends the cause of a failure, which a full disk may keep out of failed.json."""
        self._send(sentence[:1500])

    def _send(self, message: Any) -> None:
        # Short enough (PIPE_BUF) to arrive whole or not at all.
        if self.fd is not None:
            with contextlib.suppress(OSError):
                os.write(self.fd, (json.dumps(message) + "\n").encode())


def main(order: Order, pipe: Any) -> None:
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


def stop(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def set_threads(cpus: int) -> None:
    """Gives this process `cpus` threads, in the environment and in what is already imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KDEP_CPUS"):
        os.environ[name] = str(cpus)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(cpus)


def run_stage(order: Order, progress: Callable[..., None]) -> tuple[int, str | None]:
    """Runs one stage to its stage.json.

    Returns:
        (DONE, None), (BUSY, None) when another process has it or took it over, or
        (FAULT, sentence).
    """
    stage, work = order.stage, order.work
    out = state.folder(work, stage)
    lock = StageLock(work, stage.id)
    attempt: tries.Try | None = None
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
        attempt = tries.begin(work, stage.id, stage.resumable and not afresh, lock.mine)
        _log_to(attempt.open_log(), order)
        logs = True
        return (DONE if _execute(order, attempt, progress, lock.mine) else BUSY), None
    except tries.Lost:
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


def _log_to(fd: int, order: Order) -> None:
    """Sends this process's output, and that of its children, to the stage's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    print(f"--- {order.stage.id} at {_now()}, {order.stage.cpus} threads, pid {os.getpid()}")
    preload = sys.modules.get("kdep_bench.suite.preload")
    if preload is not None and preload.FAILURE:
        print(f"the fork server could not import the toolkits:\n{preload.FAILURE}")


def _execute(
    order: Order, attempt: tries.Try, progress: Callable[..., None], mine: Callable[[], bool]
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
    started, begun = _now(), time.time()
    clock, cpu = time.monotonic(), _cpu_seconds()
    trackers.tell(stage.trackers, stage.id)  # processes it starts hear it too
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
        "code": state.code_hash(stage.rooms),
        "started": started,
        "finished": _now(),
        "wall_s": round(wall, 3),
        "cpu_s": round(sum(r["cpu_s"] for r in ranks) or _cpu_seconds() - cpu, 3),
        "start_s": round(begun - order.submitted, 3),
        # Linux counts kibibytes.
        "peak_rss": max([u.ru_maxrss * 1024 for u in usage] + [r["peak_rss"] for r in ranks]),
        **_largest([peak_gpu(), *ranks]),
        "environment": environment(order) | _distributed(ranks),
        "outputs": outputs,
        **state.data_read(work, stage),
        "files": files,
        "rest": rest,
    }
    attempt.write(state.STAGE, state.stage_text(record))
    return attempt.settle(mine)


def _call(
    order: Order, inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> tuple[Any, list[dict[str, Any]]]:
    """The function's outputs and, where it ran as several processes, what each of them used."""
    from kdep_bench.suite import ddp

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


def locate(path: str) -> Callable[..., Any]:
    """'module:function' -> the function; KdepError where there is none that fits."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise KdepError(
            f"the stage function {path!r} cannot be imported ({e})",
            expected="'module:function'",
            fix=import_fix(e, "install what it needs, or correct the table of stage kinds"),
        ) from e
    try:
        inspect.signature(function).bind({}, {}, Path(), None)
    except (TypeError, ValueError) as e:
        raise KdepError(
            f"the stage function {path!r} does not accept the arguments (spec, inputs, out, "
            f"progress): {e}",
            fix="correct its signature",
        ) from None
    return function


def check_outputs(stage: Stage, outputs: Any) -> None:
    """Strict JSON in a dict, or KdepError."""
    if not isinstance(outputs, dict):
        raise KdepError(
            f"{stage.function} returned {type(outputs).__name__}",
            expected="a dict of outputs",
            fix="correct what it returns",
        )
    try:
        canonical_json(outputs)
    except (TypeError, ValueError) as e:
        raise KdepError(
            f"{stage.function} returned outputs that cannot be stored as strict JSON ({e})",
            expected="finite numbers, strings, lists and dicts",
            fix="remove NaN values and other objects from what it returns",
        ) from None


def _fail(
    attempt: tries.Try | None, order: Order, sentence: str, mine: Callable[[], bool]
) -> tuple[int, str | None]:
    """Leaves what the try made so far, with failed.json, as the stage's directory."""
    try:
        if attempt is not None:
            attempt.fail(_failure(sentence, order.stage))
            if not attempt.settle(mine):
                return BUSY, None
            return FAULT, sentence
    except (OSError, KdepError) as e:
        print(f"the directory of this attempt could not be renamed ({e})", file=sys.stderr)
    note_failure(state.folder(order.work, order.stage), sentence, order.stage)
    return FAULT, sentence


def _failure(sentence: str, stage: Stage) -> bytes:
    said = {"id": stage.id, "error": sentence, "at": _now(), "log": state.LOG}
    return json.dumps(said, indent=1, sort_keys=True).encode()


def note_failure(out: Path, sentence: str, stage: Stage) -> None:
    """Writes failed.json; on a full disk the log and the runner's own message must do."""
    with contextlib.suppress(OSError):
        if is_real_folder(out):
            write_atomic(out / state.FAILED, _failure(sentence, stage))


def sentence_of(e: BaseException) -> str:
    """One sentence for any exception: KdepErrors are theirs already."""
    if isinstance(e, KdepError):
        return str(e)
    text = " ".join(str(e).split())[:300]
    if (isinstance(e, OSError) and e.errno == 28) or "No space left on device" in text:
        return str(
            KdepError(
                f"the stage ran out of disk space ({text})",
                fix="free space on the disk of the work dir and run again",
            )
        )
    if isinstance(e, MemoryError) or "can't allocate memory" in text:
        return str(
            KdepError(
                f"the stage ran out of memory ({text})",
                fix="run fewer stages at once (--jobs) or lower the batch size",
            )
        )
    return str(
        KdepError(
            f"the stage stopped with {type(e).__name__}: {text}",
            fix=f"read the traceback at the end of its {state.LOG}",
        )
    )


def environment(order: Order) -> dict[str, Any]:
    """What ran: versions, device, threads, revision. No host name, no path."""
    return {
        "python": platform.python_version(),
        "packages": packages(),
        "device": device(),
        "threads": order.stage.cpus,
        "git": order.git,
    }


@cache
def packages() -> dict[str, str]:
    """Versions of what results depend on; looked up once, in the fork server."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device() -> str:
    """The GPU's name where this stage used CUDA, else the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu: {line.partition(':')[2].strip()}"
    return f"cpu: {platform.machine()}"


def peak_gpu() -> dict[str, int]:
    """{"peak_gpu": bytes} that torch took of a GPU for tensors; empty where it used none.

    What its allocator reserved, not `max_memory_allocated`: mmengine resets that peak every time it
    logs, and reserved memory is not given back.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"peak_gpu": torch.cuda.max_memory_reserved()}


def _largest(told: list[dict[str, Any]]) -> dict[str, int]:
    peaks = [one["peak_gpu"] for one in told if "peak_gpu" in one]
    return {"peak_gpu": max(peaks)} if peaks else {}


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        u = resource.getrusage(who)
        total += u.ru_utime + u.ru_stime
    return total


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Request to a stage process, its progress, exit codes and failures."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdep_bench.engine import state
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, write_atomic
from kdep_bench.registry import import_fix
from kdep_bench.safe_files import is_real_folder
from kdep_bench.suite.graph import Stage

ORPHAN_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
DONE, FAULT, BUSY, STOPPED = 0, 1, 75, 143  # exit codes
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Stopped(BaseException):
    """SIGTERM arrived: unwinds the stage so that `finally` blocks run."""


@dataclass(frozen=True)
class StageRequest:
    """Request to run one stage; plain data, so that it can be sent to another process.

    Attributes:
        stage: the stage, with its actual number of `cpus`.
        work: the work dir.
        force: run although it is done.
        gpus: device numbers this stage may see.
        git: revision of the repository, '' if unknown.
        run: random text of the run, written to stage.json, by which a run recognises its stages.
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
    """The `progress(done, total, note)` function of a stage; writes at most one line per 0.3 s.

    Writes JSON lines to a non-blocking pipe, so that an absent or slow reader never blocks a stage.
    """

    def __init__(self, fd: int | None, interval: float = 0.3) -> None:
        self.fd, self.interval, self._next = fd, interval, 0.0
        if fd is not None:
            os.set_blocking(fd, False)

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self.fd is None or (now < self._next and done != total):
            return
        self._next = now + self.interval
        self._send([int(done), int(total), str(note)[:200]])

    def report_failure(self, sentence: str) -> None:
        """Sends the cause of a failure, which a full disk may keep out of failed.json."""
        self._send(sentence[:1500])

    def _send(self, message: Any) -> None:
        # Short enough (PIPE_BUF) to arrive whole or not at all.
        if self.fd is not None:
            with contextlib.suppress(OSError):
                os.write(self.fd, (json.dumps(message) + "\n").encode())


def stop(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def set_threads(cpus: int) -> None:
    """Sets the threads of this process, in the environment and in imported libraries."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KDEP_CPUS"):
        os.environ[name] = str(cpus)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(cpus)


def locate(path: str) -> Callable[..., Any]:
    """'module:function' -> the function.

    Raises:
        KdepError: it cannot be imported, or does not accept (spec, inputs, out, progress).
    """
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
    """Raises KdepError for outputs that are no dict of strict JSON."""
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


def failure_record(sentence: str, stage: Stage) -> bytes:
    record = {"id": stage.id, "error": sentence, "at": utc_now(), "log": state.LOG}
    return json.dumps(record, indent=1, sort_keys=True).encode()


def note_failure(out: Path, sentence: str, stage: Stage) -> None:
    """Writes failed.json; on a full disk only the log and the runner have the error."""
    with contextlib.suppress(OSError):
        if is_real_folder(out):
            write_atomic(out / state.FAILED, failure_record(sentence, stage))


def sentence_of(e: BaseException) -> str:
    """An error message for any exception; that of a KdepError is itself."""
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


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

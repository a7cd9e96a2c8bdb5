"""Communication between the process of a stage and its runner: request, progress, exit codes."""

from __future__ import annotations

import contextlib
import errno
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
DONE, FAULT, BUSY, STOPPED = 0, 1, 75, 143  # exit codes; BUSY: another process runs the stage
PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent dies


class Stopped(BaseException):
    """Raised when SIGTERM arrives, so that the `finally` blocks of the stage run."""


@dataclass(frozen=True)
class StageRequest:
    """Request to run one stage; plain data, so that it can be sent to another process.

    Attributes:
        stage: the stage, with its actual number of `cpus`.
        work: the work dir.
        force: whether to run the stage also if it is done.
        gpus: device numbers that this stage may use.
        git: revision of the repository, '' if unknown.
        run: random text that identifies the run; stage.json contains it.
        submitted: time.time() of the request; the start overhead is measured from it.
    """

    stage: Stage
    work: Path
    force: bool = False
    gpus: tuple[str, ...] = ()
    git: str = ""
    run: str = ""
    submitted: float = field(default_factory=time.time)


class Reporter:
    """The `progress(done, total, note)` function of a stage.

    Writes at most one line per `interval` seconds, and a line if done == total. The lines are
    JSON, in a non-blocking pipe, so that an absent or slow reader never blocks a stage.
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
        """Sends the error: on a full disk it cannot be written to failed.json."""
        # JSON needs six bytes for most characters that are not ASCII; see `_send`.
        self._send(sentence[: 1500 if sentence.isascii() else 600])

    def _send(self, message: Any) -> None:
        # Messages are shorter than PIPE_BUF: the kernel writes them completely or not at all.
        if self.fd is not None:
            with contextlib.suppress(OSError):
                os.write(self.fd, (json.dumps(message) + "\n").encode())


def stop(*_: Any) -> None:
    """Signal handler: raises Stopped once; later SIGTERMs are ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def set_threads(cpus: int) -> None:
    """Sets the number of threads of this process, in the environment and in imported libraries."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KDEP_CPUS"):
        os.environ[name] = str(cpus)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(cpus)


def locate(path: str) -> Callable[..., Any]:
    """Imports the stage function at `path` ('module:function').

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
            fix=import_fix(e, "install what it needs, or correct its path in the config"),
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
    """Raises KdepError for outputs that are not a dict of strict JSON (no NaN, no objects)."""
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
    """Content of failed.json."""
    record = {"id": stage.id, "error": sentence, "at": utc_now(), "log": state.LOG}
    return json.dumps(record, indent=1, sort_keys=True).encode()


def note_failure(out: Path, sentence: str, stage: Stage) -> None:
    """Writes failed.json into `out`, unless the disk is full; the log has the error then."""
    with contextlib.suppress(OSError):
        if is_real_folder(out):
            write_atomic(out / state.FAILED, failure_record(sentence, stage))


def error_text(e: BaseException) -> str:
    """The error message for an exception, with a fix; a KdepError already has both."""
    if isinstance(e, KdepError):
        return str(e)
    text = " ".join(str(e).split())[:300]
    is_disk_full = isinstance(e, OSError) and e.errno == errno.ENOSPC
    if is_disk_full or "No space left on device" in text:
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
    """The time in UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")

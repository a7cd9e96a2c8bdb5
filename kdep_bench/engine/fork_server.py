"""The fork server of the local pool: stages start as forks of a process with imported toolkits.

The toolkits are torch, mmengine, mmpretrain, mmdet and mmseg; importing them takes seconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.paths import ROOT

# The path of a Unix socket has at most 107 bytes; multiprocessing appends
# "/pymp-xxxxxxxx/listener-xxxxxxxx" (32 bytes).
MAX_TEMPORARY_PATH = 107 - 32


class ForkServer:
    """Starts multiprocessing's fork server, and processes from it.

    Args:
        preload: module that the server imports first.
        is_stopped: returns whether the run was stopped; then `start` does not wait any longer.
        refresh: called about every 0.1 s while the server imports.
    """

    def __init__(
        self, preload: str, is_stopped: Callable[[], bool], refresh: Callable[[], None]
    ) -> None:
        self.preload, self.is_stopped, self.refresh = preload, is_stopped, refresh
        self._context: Any = multiprocessing.get_context("forkserver")

    def start(self) -> float | None:
        """Starts the server and waits for its imports; signals are handled meanwhile.

        Returns:
            seconds that the imports took; None if the run was stopped meanwhile.

        Raises:
            KdepError: the server does not start, or TMPDIR is too long for its sockets.
        """
        check_temporary_folder()
        started = time.monotonic()
        self._context.set_forkserver_preload([self.preload])
        first_child = self._context.Process(target=_do_nothing)
        with _python_path():
            thread = threading.Thread(target=self._start_first, args=(first_child,), daemon=True)
            thread.start()
            while thread.is_alive() and not self.is_stopped():
                thread.join(0.1)
                self.refresh()
        if self.is_stopped():
            _end_server()
            return None
        if first_child.pid is None:
            raise KdepError(
                "the fork server could not be started",
                fix="read the message above; free memory, or raise the limit on processes (ulimit "
                "-u)",
            )
        first_child.join()
        return time.monotonic() - started

    def _start_first(self, process: Any) -> None:
        """Starts the fork server with `process` as its first child."""
        # The terminal sends Ctrl-C (SIGINT) to all processes, but only the pool may handle it: the
        # pool ends the others. The fork server and the stages inherit the signal mask of this
        # thread. multiprocessing's resource tracker starts first: its start unblocks SIGINT.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            _start(process)
        except (EOFError, OSError):
            # If the run was stopped, the server was ended in the middle of its imports.
            if not self.is_stopped():
                raise

    def launch(self, target: Callable[..., None], request: Any, name: str) -> tuple[Any, Any]:
        """Starts `target(request, writer)` as a fork of the server.

        Returns:
            (process, reader): the child, and the reading end of its pipe, which does not block.
        """
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=target, args=(request, writer), name=name)
        _start(process)
        writer.close()
        os.set_blocking(reader.fileno(), False)
        return process, reader


@contextlib.contextmanager
def _python_path() -> Iterator[None]:
    """Puts the repository into PYTHONPATH: before CPython 3.13 the server inherits no sys.path."""
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([old] if old else [])])
    try:
        yield
    finally:
        if old is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = old


def _start(process: Any) -> None:
    """Starts a process; the child does not import the `__main__` file of this program."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main


def _end_server() -> None:
    """Kills the fork server: during its imports it would not notice the end of this process."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def check_temporary_folder() -> None:
    """Raises KdepError if the path of the temporary folder is too long for a socket."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > MAX_TEMPORARY_PATH:
        raise KdepError(
            f"the path of the temporary folder, {folder}, has {len(os.fsencode(folder))} bytes, "
            "too many for a Unix socket in it",
            expected=f"at most {MAX_TEMPORARY_PATH} bytes",
            fix="set TMPDIR to a folder with a shorter path, for example TMPDIR=/tmp",
        )


def _do_nothing() -> None:
    """First child of the fork server: when it ends, the toolkits have been imported."""

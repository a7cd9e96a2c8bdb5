"""The fork server of the local pool: stages start as forks of a process with imported toolkits."""

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

# A socket path can have 107 bytes; multiprocessing appends "/pymp-xxxxxxxx/listener-xxxxxxxx".
MAX_TEMPORARY_PATH = 107 - 32


class ForkServer:
    """Starts multiprocessing's fork server, and processes from it.

    Args:
        preload: module that the server imports first.
        stopped: whether the run was stopped; ends the wait for the imports.
        refresh: called about every 0.1 s while the server imports.
    """

    def __init__(
        self, preload: str, stopped: Callable[[], bool], refresh: Callable[[], None]
    ) -> None:
        self.preload, self.stopped, self.refresh = preload, stopped, refresh
        self._context: Any = multiprocessing.get_context("forkserver")

    def start(self) -> float | None:
        """Starts the server and waits for its imports, while signals are still handled.

        Returns:
            seconds that the imports took; None where the run was stopped meanwhile.

        Raises:
            KdepError: the server does not start, or TMPDIR is too long for its sockets.
        """
        check_temporary_folder()
        begun = time.monotonic()
        self._context.set_forkserver_preload([self.preload])
        first = self._context.Process(target=_nothing)
        with _python_path():
            thread = threading.Thread(target=self._start_first, args=(first,), daemon=True)
            thread.start()
            while thread.is_alive() and not self.stopped():
                thread.join(0.1)
                self.refresh()
        if self.stopped():
            _end_server()
            return None
        if first.pid is None:
            raise KdepError(
                "the fork server could not be started",
                fix="read the message above; free memory, or raise the limit on processes (ulimit "
                "-u)",
            )
        first.join()
        return time.monotonic() - begun

    def _start_first(self, process: Any) -> None:
        # The terminal sends Ctrl-C to all processes; only the pool handles it, and ends the others.
        # The fork server, and so the stages, inherit the signal mask of this thread. The tracker
        # starts first, because its start unblocks Ctrl-C again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            _start(process)
        except (EOFError, OSError):
            if not self.stopped():  # a signal ends the server in the middle of its imports
                raise

    def launch(self, target: Callable[..., None], request: Any, name: str) -> tuple[Any, Any]:
        """Starts `target(request, writer)` as a fork of the server.

        Returns:
            (process, reader): the reading end of the pipe does not block.
        """
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=target, args=(request, writer), name=name)
        _start(process)
        writer.close()
        os.set_blocking(reader.fileno(), False)
        return process, reader


@contextlib.contextmanager
def _python_path() -> Iterator[None]:
    """Puts the repository into PYTHONPATH; the server inherits no sys.path (CPython < 3.13)."""
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
    """Starts a process that does not import this program's main file."""
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
    """Raises KdepError where the path of the temporary folder is too long for a socket."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > MAX_TEMPORARY_PATH:
        raise KdepError(
            f"the path of the temporary folder, {folder}, has {len(os.fsencode(folder))} bytes, "
            "too many for a Unix socket in it",
            expected=f"at most {MAX_TEMPORARY_PATH} bytes",
            fix="set TMPDIR to a folder with a shorter path, for example TMPDIR=/tmp",
        )


def _nothing() -> None:
    """First child of the fork server; it runs once the toolkits are imported."""

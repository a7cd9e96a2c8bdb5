"""Standard streams, exit codes and unhandled errors of the command-line tools."""

from __future__ import annotations

import argparse
import codecs
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kdep_bench.errors import file_fault

FAILURE = 1  # exit code of the faults that this module reports
_UTF8 = "PYTHONUTF8"  # environment variable of Python's UTF-8 mode
_ACTIVATE = (
    "activate the environment: source .venv/bin/activate (`make install` makes it), or install "
    "kdep_bench with pip into the Python that you use."
)


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits with the code that it returns (None is 0).

    Other exit codes: 141 (as after SIGPIPE), without a message, if the reader of standard output
    has ended (`| head`); 130 after Ctrl-C, unless the command handles it; 1, with one line on
    standard error, if standard output is closed or cannot be written. A missing Python package, and
    an OSError that the command does not handle, are printed as one line without a traceback.

    In a locale that is not UTF-8 the process restarts itself in Python's UTF-8 mode, because
    configs and records are UTF-8. Characters that a stream cannot encode are printed as escape
    sequences.
    """
    _restart_in_utf8()
    if not _open_streams():
        _print_error("standard output is closed. Fix: redirect it to a file or to /dev/null.")
        _end(FAILURE)
    argparse.ArgumentParser._print_message = _print_message
    code: Any = FAILURE
    try:
        code = main()
    except SystemExit as e:  # raised by argparse; its text is flushed below
        code = e.code
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _print_error("interrupted")
        code = 128 + signal.SIGINT
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if not package or importlib.util.find_spec(package) is not None:
            raise  # the package is installed, but a module of it is missing
        _flush(sys.stdout)
        _print_error(
            f"the Python package {package} is not installed for {sys.executable}. Fix: {_ACTIVATE}"
        )
        code = FAILURE
    except OSError as e:
        if _flush(sys.stdout) is None:  # the error is about a file, not about standard output
            _print_error(f"{Path(sys.argv[0]).stem}: {file_fault(e)}")
    except BaseException:
        _flush(sys.stdout)
        raise
    fault = _flush(sys.stdout)
    if isinstance(fault, BrokenPipeError):
        code = 128 + signal.SIGPIPE
    elif fault is not None:
        _print_error(
            f"standard output could not be written ({fault.strerror}); part of it is lost. "
            "Fix: free disk space (see df -h and df -i), or use another disk."
        )
        code = code if isinstance(code, int) and code else FAILURE
    if code == 128 + signal.SIGPIPE:
        _discard(sys.stdout)
    if isinstance(code, str):  # as sys.exit(text) does
        _print_error(code)
        code = 1
    _end(code)


def run_command(module: str) -> NoReturn:
    """Imports a module and runs its `main` with `run_main`, which also reports failed imports."""
    if sys.version_info < (3, 11):  # noqa: UP036 (a system's Python may be older)
        _print_error(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old. Fix: {_ACTIVATE}"
        )
        _end(FAILURE)

    def main() -> int | None:
        return importlib.import_module(module).main()

    run_main(main)


def _print_message(self: argparse.ArgumentParser, message: str, file: Any = None) -> None:
    """Replaces argparse's method, which ignores failed writes and exits with 0."""
    if message:
        (file or sys.stderr).write(message)


def _end(code: Any) -> NoReturn:
    """Flushes standard error and exits with `code`."""
    if _flush(sys.stderr) is not None:
        _discard(sys.stderr)
    sys.exit(code)


def _print_error(sentence: str) -> None:
    """Prints to standard error, ignoring failures of that stream."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _flush(stream: Any) -> OSError | None:
    """Flushes a stream; on failure discards its buffer and returns the error."""
    try:
        stream.flush()
    except OSError as e:
        _discard(stream)
        return e
    return None


def _discard(stream: Any) -> None:
    """Redirects a stream to /dev/null; otherwise Python would write its buffer again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _open_streams() -> bool:
    """Makes all standard streams usable; returns whether standard output was open.

    Opens /dev/null on each of the file descriptors 0, 1 and 2 that is closed. Otherwise the next
    file that is opened would get this descriptor, and text printed by a library or a child process
    would be written into the file. Standard output replaces a closed standard error.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    is_open = sys.stdout is not None
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return is_open


def _restart_in_utf8() -> None:
    """Restarts the process in Python's UTF-8 mode if the locale has another encoding."""
    import locale

    encoding = codecs.lookup(locale.getpreferredencoding(False)).name
    if sys.flags.utf8_mode or encoding == "utf-8" or os.environ.get(_UTF8) == "1":
        return
    os.environ[_UTF8] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

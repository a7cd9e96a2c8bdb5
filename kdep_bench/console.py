"""How every command begins and ends: with streams that can be written, and with its exit code."""

from __future__ import annotations

import argparse
import codecs
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LOST = 1  # exit code where output could not be written
_UTF8 = "PYTHONUTF8"


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and ends the process with what it returns.

    Where the reader of standard output is gone (`| head`), the code is that of a program that
    SIGPIPE ended, 141, and nothing is said: no reader wants to know. Where standard output is
    closed, or the disk under it is full, one sentence says so on standard error and the code is
    not 0. Ctrl-C, where a command does not answer it itself, ends it with 130 and a word. A fault
    of the file system that a command let through is a sentence, not a traceback.

    In a locale that is not UTF-8 the process starts again in Python's UTF-8 mode, so that configs
    and records are read as they were written; a stream that cannot show a character gets its
    escape.
    """
    _begin_again_in_utf8()
    if not _streams_are_open():
        _say("standard output is closed. Fix: redirect it to a file or to /dev/null.")
        _end(LOST)
    argparse.ArgumentParser._print_message = _print_message
    code: Any = LOST
    try:
        code = main()
    except SystemExit as e:  # of argparse, with its text still in the buffer
        code = e.code
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _say("interrupted")
        code = 128 + signal.SIGINT
    except OSError as e:
        if _flushed(sys.stdout) is None:  # it was a file's fault, not that of standard output
            _say(_file_fault(e))
    except BaseException:
        _flushed(sys.stdout)
        raise
    fault = _flushed(sys.stdout)
    if isinstance(fault, BrokenPipeError):
        code = 128 + signal.SIGPIPE
    elif fault is not None:
        _say(f"standard output could not be written ({fault.strerror}); part of it is lost. "
             "Fix: free disk space (see df -h and df -i), or use another disk.")  # fmt: skip
        code = code if isinstance(code, int) and code else LOST
    if code == 128 + signal.SIGPIPE:
        _discard(sys.stdout)
    if isinstance(code, str):  # what sys.exit("a sentence") does
        _say(code)
        code = 1
    _end(code)


def _print_message(self: argparse.ArgumentParser, message: str, file: Any = None) -> None:
    """argparse's own passes over a write that fails: help that is lost would end with 0."""
    if message:
        (file or sys.stderr).write(message)


def _file_fault(e: OSError) -> str:
    name = Path(sys.argv[0]).stem
    return (
        f"{name}: a file could not be written or read ({e}). Fix: free disk space or inodes "
        "(see df -h and df -i), or correct the folder's permissions, then rerun the same command."
    )


def _end(code: Any) -> NoReturn:
    if _flushed(sys.stderr) is not None:
        _discard(sys.stderr)
    sys.exit(code)


def _say(sentence: str) -> None:
    """Prints to standard error; where that cannot be written, nobody is left to tell."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _flushed(stream: Any) -> OSError | None:
    """What stands in the way of the stream's buffer, which is then thrown away."""
    try:
        stream.flush()
    except OSError as e:
        _discard(stream)
        return e
    return None


def _discard(stream: Any) -> None:
    """Points a stream at /dev/null: what is still buffered would be tried again at the exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _streams_are_open() -> bool:
    """Whether there is a standard output; descriptors 0 to 2 are taken in any case.

    A closed one is the next file's that is opened, and what a library or another process prints
    would be written into that file. Without a standard error its sentences go to standard output.
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


def _begin_again_in_utf8() -> None:
    """Replaces the process by itself in UTF-8 mode where the locale has another encoding."""
    import locale

    encoding = codecs.lookup(locale.getpreferredencoding(False)).name
    if sys.flags.utf8_mode or encoding == "utf-8" or os.environ.get(_UTF8) == "1":
        return
    os.environ[_UTF8] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

"""How every command ends: with its code, and in silence where its reader has left."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def leave(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and ends the process with what it returns.

    Where the reader of standard output is gone (`| head`), the code is that of a program that
    SIGPIPE ended, 141, and nothing is said: no reader wants to know. Ctrl-C, where a command does
    not answer it itself, ends it with 130 and a word.
    """
    try:
        try:
            code = main()
        finally:  # --help ends by SystemExit, its text still in the buffer
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would be tried once more, and complained about, at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)

"""Records which functions of the project are called, in every process of a test run.

Every Python interpreter of a mapping run imports this module when it starts. It writes one line per
function and process to the file that KDEP_CALLS names. pytest's process adds lines that name the
test or fixture that runs (`Mapper` in `child.py`), and calls `forget` after each of them.
"""

from __future__ import annotations

import os
import sys
import threading
from types import CodeType, FrameType

_seen: set[CodeType] = set()
_root = os.environ.get("KDEP_CALLS_ROOT", "") + "/kdep_bench/"
_out = -1


def note(line: str) -> None:
    """Writes one line to the log of calls; lines of several processes do not mix."""
    os.write(_out, f"{line}\n".encode())


def forget() -> None:
    """Lets the next call of each function be written again."""
    _seen.clear()


def record_call(frame: FrameType, event: str, argument: object) -> None:
    """Trace function: writes the first call of each of the project's functions."""
    code = frame.f_code
    if code in _seen:
        return
    _seen.add(code)
    if code.co_filename.startswith(_root):
        path = code.co_filename[len(_root) - len("kdep_bench/") :]  # from the root of the tree
        note(f"C {path} {code.co_qualname}")


def start(path: str, root: str) -> None:
    """Begins to write the calls of functions under `root`/kdep_bench to `path`."""
    global _out, _root
    _root = f"{root}/kdep_bench/"
    _out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    threading.settrace(record_call)  # type: ignore[arg-type]
    sys.settrace(record_call)  # type: ignore[arg-type]


if os.environ.get("KDEP_CALLS"):
    start(os.environ["KDEP_CALLS"], os.environ["KDEP_CALLS_ROOT"])

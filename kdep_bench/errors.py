"""The one exception meant for a person: a sentence with what was got, expected, and to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# All but tab and line feed: a name out of a file or a folder could otherwise drive a terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class KdepError(Exception):
    """A fault the user can act on.

    Args:
        got: what was found, as a clause ("the file x.json names 3 images that do not exist").
        expected: what should have been there.
        remedy: what to do about it.

    `str(error)` is the whole sentence; programs print it and exit non-zero, without a traceback.
    """

    def __init__(self, got: str, expected: str = "", remedy: str = "") -> None:
        self.got, self.expected, self.remedy = got, expected, remedy
        parts = [got.rstrip(".")]
        if expected:
            parts.append(f"expected {expected.rstrip('.')}")
        if remedy:
            parts.append(f"to mend it: {remedy.rstrip('.')}")
        super().__init__(_printable("; ".join(parts) + "."))

    def __reduce__(self) -> tuple[type[KdepError], tuple[str, str, str]]:
        return type(self), (self.got, self.expected, self.remedy)


def _printable(text: str) -> str:
    """`text` with control characters, and bytes of file names that are not UTF-8, as \\xNN."""
    text = re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}", text)
    text = _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


def unknown_name(kind: str, got: str, valid: Iterable[str], remedy: str = "") -> KdepError:
    """A KdepError for a name that is not among `valid`, listing the nearest ones."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(got, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of: {', '.join(names)}"
    return KdepError(f"unknown {kind} {got!r}", f"one of {len(names)} known names", remedy or hint)

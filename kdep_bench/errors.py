"""KdepError: the exception for faults that the user can fix, printed as one line."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

# Control characters except tab and line feed. A file name with them could send escape sequences to
# the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

MAX_NAMES = 40  # maximum number of valid names that an error lists

# A full stop, also a doubled one, at the end; not an ellipsis, and not the paths "." and "..".
_FULL_STOP = re.compile(r"(?<=[^\s./])\.{1,2}$")


class KdepError(Exception):
    """A fault that the user can fix: what is wrong, what was expected, and what to do.

    `str(error)` is "<problem>; expected <expected>. Fix: <fix>.". Programs print it without a
    traceback and exit with a code other than 0. The attributes `expected` and `fix` are "" if they
    are not given. `faults` are the single errors of an error that lists several (see faults.py).

    Args:
        problem: what is wrong, as a clause that names the file or setting ("the file x.json
            names 3 images that do not exist").
        expected: what should be there instead; None if `problem` and `fix` already say so.
        fix: what to do about it, as an instruction ("download it again").
    """

    faults: tuple[KdepError, ...] = ()

    def __init__(
        self, problem: str, *, expected: str | None = None, fix: str | None = None
    ) -> None:
        self.problem, self.expected, self.fix = problem, expected or "", fix or ""
        text = problem
        if self.expected:
            text = f"{_FULL_STOP.sub('', problem)}; expected {self.expected}"
        text = _ended(text)
        if self.fix:
            text += f" Fix: {_ended(self.fix)}"
        super().__init__(_printable(text))

    def __reduce__(self) -> tuple[Callable[[str], KdepError], tuple[str]]:
        build = partial(type(self), expected=self.expected, fix=self.fix)
        return build, (self.problem,)


def _ended(text: str) -> str:
    """`text` with one full stop, or the mark that ends it already (?, !, ellipsis, a path)."""
    bare = _FULL_STOP.sub("", text)
    return text if bare == text and text.endswith(("?", "!", ".")) else f"{bare}."


def first_of(items: Iterable[object], limit: int, separator: str = ", ") -> str:
    """The first `limit` items as text; if there are more, with "and N more" at the end.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}, not 1 or more")
    texts = [str(item) for item in items]
    rest = len(texts) - limit
    return separator.join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _printable(text: str) -> str:
    """`text` with control characters, and bytes of file names that are not UTF-8, as \\xNN."""
    text = re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}", text)
    text = _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


def fault_text(fault: Mapping[str, Any]) -> str:
    """The message of a fault that pydantic found, without the prefix of its own exceptions."""
    return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def expected_text(fault: Mapping[str, Any]) -> str:
    """What pydantic expected where it found a fault: "a number greater than 0"."""
    limits = fault.get("ctx") or {}
    if fault["type"] == "too_short":
        return f"{limits.get('min_length', 1)} or more entries"
    if fault["type"] == "too_long":
        return f"at most {limits.get('max_length')} entries"
    text = fault_text(fault).removeprefix("Input should be ")
    text = text.replace("a valid integer", "an integer").replace("a valid ", "a ")
    if text == "an instance of Sequence" or fault["type"] == "sequence_str":
        value = fault.get("input")
        return (
            f"a list, such as [{value!r:.60}]" if isinstance(value, str | int | float) else "a list"
        )
    text = text.replace("greater than or equal to", "of at least")
    text = text.replace("less than or equal to", "of at most")
    is_limit = text.startswith(("greater than", "less than", "of at"))
    return f"a number {text}" if is_limit else text


# The fix for an OSError, by its error number.
_FILE_FIXES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "free disk space or inodes (see df -h and df -i)"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "correct its permissions, or use another folder"),
    errno.ENOENT: "correct the path, or restore the file",
    errno.EROFS: "use a folder on a disk that is not read-only",
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST), "use another folder (a part of this path is a file)"
    ),
    errno.EISDIR: "move this folder elsewhere: a file with its name is needed",
}


def file_fault(e: OSError) -> KdepError:
    """The error for a file that a command could not read or write."""
    has_path = isinstance(e.filename, str | bytes) and e.filename
    path = f"the file {os.fsdecode(e.filename)}" if has_path else "a file"
    default = "free disk space or inodes (see df -h and df -i), or correct the permissions"
    return KdepError(
        f"{path} could not be written or read ({e.strerror or e})",
        fix=f"{_FILE_FIXES.get(e.errno or 0, default)}; then run the command again",
    )


def how_to_rebuild(folder: object) -> str:
    """The fix for a damaged stage directory `folder`: move it away, so that a run rebuilds it."""
    return f"move the folder {folder} out of the work dir and run the suite again, which writes it"


def similar_names(name: str, valid: Iterable[str]) -> list[str]:
    """Up to three of the names `valid` that are similar to `name`, the most similar first."""
    near = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, n, name).ratio() for n in near]
    # A name that is much less similar than the best one would only distract.
    return [n for n, ratio in zip(near, likeness, strict=True) if ratio > max(likeness) - 0.2]


def unknown_name(
    kind: str,
    name: str,
    valid: Iterable[str],
    *,
    place: str = "",
    fix: str | None = None,
    otherwise: str | None = None,
) -> KdepError:
    """A KdepError for a name that is not among `valid`.

    Args:
        kind: what the name is, such as "method".
        name: the unknown name.
        valid: all valid names.
        place: where the name was found, such as "the budget".
        fix: what to do; default: suggests up to three similar names or, if there is none,
            `otherwise`.
        otherwise: what to do if no valid name is similar; default: lists up to MAX_NAMES.
    """
    names = sorted(map(str, valid))
    near = similar_names(name, names)
    choices = otherwise or f"choose one of: {first_of(names, MAX_NAMES)}"
    hint = f"did you mean {' or '.join(near)}?" if near else choices
    found_in = f" in {place}" if place else ""
    return KdepError(f"unknown {kind} {name!r}{found_in}", fix=fix or hint)

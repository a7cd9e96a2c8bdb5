"""Class names: compared exactly, and refused if they differ only by case, spaces or Unicode."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from kdep_bench.errors import KdepError

SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def plain(name: str) -> str:
    """The name in lower case without invisible characters; runs of spaces and "_" are one space.

    Also normalises Unicode (NFKC): accented letters have two encodings, of which macOS uses the
    rarer one in file names.
    """
    seen = "".join(c for c in name if unicodedata.category(c) != "Cf")
    seen = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return " ".join(seen.replace("_", " ").split())


def pair_shown(first: str, second: str) -> str:
    """Two names, quoted; names that are not ASCII with escapes, because they can look the same."""
    quote = repr if first.isascii() and second.isascii() else ascii
    return f"{quote(first)} and {quote(second)}"


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names with equal `plain` names."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        earlier = first.setdefault(plain(name), name)
        if earlier != name:
            pairs.append((earlier, name))
    return pairs


def check_twins(names: Iterable[str], where: str, fix: str) -> None:
    """Raises KdepError if two of the class names have equal `plain` names.

    Args:
        names: of the classes.
        where: what has them; the error begins with it.
        fix: advice of the error.
    """
    if pairs := twins(names):
        shown = ", ".join(pair_shown(a, b) for a, b in pairs[:3])
        raise KdepError(
            f"{where} has classes that differ only by case, spaces, underscores or Unicode form: "
            f"{shown}",
            expected="one spelling per class",
            fix=fix,
        )


def listed(names: Iterable[str], max_shown: int = 8) -> str:
    """The first `max_shown` names, quoted, and their number if there are more."""
    names = list(names)
    rest = f", ... ({len(names)} in all)" if len(names) > max_shown else ""
    return ", ".join(repr(n) for n in names[:max_shown]) + rest

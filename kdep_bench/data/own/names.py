"""Names of classes: told apart exactly, and refused where they differ by case or spaces only."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from kdep_bench.errors import KdepError

SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def plain(name: str) -> str:
    """The name without case, surrounding spaces and invisible characters, one kind of space inside.

    Unicode has two spellings of an accented letter, and macOS names files with the other one.
    """
    seen = "".join(c for c in name if unicodedata.category(c) != "Cf")
    seen = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return " ".join(seen.replace("_", " ").split())


def pair_shown(first: str, second: str) -> str:
    """Two names, quoted; with their code points where they would look the same."""
    quote = repr if first.isascii() and second.isascii() else ascii
    return f"{quote(first)} and {quote(second)}"


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names with equal `plain` names."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        other = first.setdefault(plain(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def check_twins(names: Iterable[str], where: str, fix: str) -> None:
    """KdepError where two classes of `where` have equal `plain` names."""
    if pairs := twins(names):
        shown = ", ".join(pair_shown(a, b) for a, b in pairs[:3])
        raise KdepError(
            f"{where} has classes that differ only by case, spaces, underscores or Unicode form: "
            f"{shown}",
            expected="one spelling per class",
            fix=fix,
        )


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names, quoted, the first `most` of them."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(repr(n) for n in names[:most]) + more

"""Names of classes: told apart exactly, and refused where they differ by case or spaces only."""

from __future__ import annotations

from collections.abc import Iterable

from kdep_bench.errors import KdepError

SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def plain(name: str) -> str:
    """The name without case, surrounding spaces, and with one kind of space inside."""
    return " ".join(name.casefold().replace("_", " ").split())


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are equal but for case, spaces and underscores."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        other = first.setdefault(plain(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def check_twins(names: Iterable[str], where: str, remedy: str) -> None:
    """KdepError where two classes of `where` are equal but for case or spaces."""
    if pairs := twins(names):
        shown = ", ".join(f"{a!r} and {b!r}" for a, b in pairs[:3])
        raise KdepError(
            f"{where} has classes that differ by case, spaces or underscores alone: {shown}",
            "each class under one name",
            remedy,
        )


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names, quoted, the first `most` of them."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(repr(n) for n in names[:most]) + more

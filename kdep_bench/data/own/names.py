"""Class names: two names that differ only by case, spaces or Unicode form are an error."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from kdep_bench.errors import KdepError

# Names of folders that are splits, not classes.
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def simplify(name: str) -> str:
    """Simplifies a name for comparison: "Traffic_Light " becomes "traffic light".

    Changes it to lower case, removes invisible characters, and replaces each run of spaces and "_"
    by one space. Unicode is normalised (NFKC), because accented letters have two encodings, and
    macOS uses the less common one in file names.
    """
    visible = "".join(c for c in name if unicodedata.category(c) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return " ".join(folded.replace("_", " ").split())


def pair_text(first: str, second: str) -> str:
    """Two names in quotes; with \\u escapes if one is not ASCII, because they can look the same."""
    quote = repr if first.isascii() and second.isascii() else ascii
    return f"{quote(first)} and {quote(second)}"


def similar_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names with equal `simplify` names."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        earlier = first.setdefault(simplify(name), name)
        if earlier != name:
            pairs.append((earlier, name))
    return pairs


def check_similar_names(names: Iterable[str], where: str, fix: str) -> None:
    """Raises KdepError if two of the class names have equal `simplify` names.

    Args:
        names: class names.
        where: the file or folder with the names; the error begins with it.
        fix: the fix that the error states.
    """
    if pairs := similar_names(names):
        shown = ", ".join(pair_text(a, b) for a, b in pairs[:3])
        raise KdepError(
            f"{where} has classes that differ only by case, spaces, underscores or Unicode form: "
            f"{shown}",
            expected="one spelling per class",
            fix=fix,
        )


def listed(names: Iterable[str], max_shown: int = 8) -> str:
    """The first `max_shown` names in quotes; if there are more, also their total number."""
    names = list(names)
    rest = f", ... ({len(names)} in all)" if len(names) > max_shown else ""
    return ", ".join(repr(n) for n in names[:max_shown]) + rest

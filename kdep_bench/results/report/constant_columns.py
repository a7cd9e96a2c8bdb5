"""Columns that a table need not show: those without a value, and those with one value."""

from __future__ import annotations

from collections.abc import Sequence

DASH = "—"
MAX_DASHES = 3  # rows with a dash in a column that is left out; see `constant`

# Columns with settings of the rows. If all rows have one value, it is stated below the table
# instead.
SETTINGS = frozenset(
    (
        "labels used",
        "data fraction",
        "images seen",
        "pre-training cost",
        "of which teacher cache",
        "weights loaded",
        "seed pairs",
        "independent seeds",
        "learning rate",
        "extra parameters",
        "extra forward passes per image seen",
        "teacher",
        "degrees of freedom",
        "independent seeds per method",
        "epochs",
    )
)


def empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Indices of the columns that have a dash in every row."""
    return [i for i in range(len(head)) if rows and all(row[i] == DASH for row in rows)]


def constant(
    head: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[int, str]:
    """Index -> value of the columns of `SETTINGS` with one value; empty for a single row.

    Up to MAX_DASHES rows may have a dash, such as the row without pre-training, if their names
    distinguish them from the other rows. The text of the value names them. A column of dashes is
    not constant but empty.

    Args:
        head: headings.
        rows: the entries of each row as text.
        names: the name of each row; "" for a row without a name.
    """
    if len(rows) < 2:
        return {}
    same = {}
    for i, heading in enumerate(head):
        values = {row[i] for row in rows} - {DASH}
        if heading not in SETTINGS or len(values) != 1:
            continue
        without = [name for row, name in zip(rows, names, strict=True) if row[i] == DASH]
        with_value = {name for row, name in zip(rows, names, strict=True) if row[i] != DASH}
        if len(without) > MAX_DASHES or not with_value.isdisjoint(without) or "" in without:
            continue
        same[i] = next(iter(values))
        if without:
            same[i] += f" (none for {', '.join(dict.fromkeys(without))})"
    return same

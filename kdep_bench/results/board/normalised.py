"""Scores between chance and a reference, so that tasks of different ranges can be averaged.

    normalised = (score - chance) / (reference - chance)

0 is chance, 1 is the reference: the supervised row with the largest data fraction and most epochs,
fixed by rule and not chosen by score. A raw mean adds top-1, AP and mIoU as if a point of each were
worth the same. The reference's mean is taken as a constant; its own seed variance is not in the
numbers, which therefore have no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey

REFERENCE = "supervised"
SMALLEST_RANGE = 0.01  # between chance and reference; a smaller one divides by noise


@dataclass(frozen=True, slots=True)
class Normalised:
    """One row's means over tasks: raw and normalised, and the normalised mean without one task.

    `low`, `high`: (mean, the task that was left out). Every family has the same weight.
    """

    row: RowKey
    raw: float
    mean: float
    low: tuple[float, str]
    high: tuple[float, str]


def reference_row(board: Board, student: str) -> RowKey | None:
    """The supervised row with the largest data fraction, of these the longest."""
    rows = [r for r in board.rows_of(student) if r.method == REFERENCE and not board.submitted(r)]
    return max(rows, key=lambda r: (r.fraction, r.epochs or 0.0, r.order()), default=None)


def normalised(board: Board, student: str) -> list[Normalised]:
    """All complete rows, best first; empty without a complete reference, with a task of unknown
    chance, with a reference that is not above chance, or with a single task."""
    columns = compare.columns_of(board, student)
    reference = reference_row(board, student)
    rows = compare.complete_rows(board, student)
    if reference is None or reference not in rows or len(columns) < 2:
        return []
    ends: dict[Column, tuple[float, float]] = {}
    for column in columns:
        chance, top = board.chance[column], _mean(board, reference, column)
        if chance is None or column.sign * (top - chance) < SMALLEST_RANGE:
            return []
        ends[column] = (chance, top)
    table = [_normalise(board, row, columns, ends) for row in rows]
    return sorted(table, key=lambda n: (-n.mean, n.row.order()))


def _normalise(
    board: Board,
    row: RowKey,
    columns: Sequence[Column],
    ends: Mapping[Column, tuple[float, float]],
) -> Normalised:
    raw = {c: _mean(board, row, c) for c in columns}
    placed = {c: (raw[c] - ends[c][0]) / (ends[c][1] - ends[c][0]) for c in columns}
    left_out_means = [
        (_weighted(placed, [c for c in columns if c != left_out]), left_out.task)
        for left_out in columns
    ]
    return Normalised(
        row,
        _weighted(raw, columns),
        _weighted(placed, columns),
        min(left_out_means),
        max(left_out_means),
    )


def _mean(board: Board, row: RowKey, column: Column) -> float:
    estimate = board.result(row, column).estimate
    assert estimate is not None  # rows are complete
    return estimate.mean


def _weighted(values: Mapping[Column, float], columns: Sequence[Column]) -> float:
    weights = compare.task_weights(columns)
    return sum(w * values[c] for w, c in zip(weights, columns, strict=True))

"""Normalised scores, which allow a mean over tasks with different ranges of scores.

    normalised = (score - chance) / (reference - chance)

0 is chance. 1 is the reference: the supervised row with the largest data fraction and the most
epochs, which is not chosen by its score. (A mean of raw scores treats a point of top-1, AP and mIoU
as equal.) The reference's mean is taken as a constant. Normalised means have no interval, because
the seed variance of the reference is not included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey

REFERENCE = "supervised"
MIN_RANGE = 0.01  # least (reference - chance), a fraction; a smaller divisor is mostly noise


@dataclass(frozen=True, slots=True)
class Normalised:
    """The means of one row over tasks; every task family has the same weight.

    `raw`: mean score, a fraction. `mean`: mean of normalised scores. `low`, `high`: the lowest and
    the highest normalised mean with one task left out, as (mean, name of that task).
    """

    row: RowKey
    raw: float
    mean: float
    low: tuple[float, str]
    high: tuple[float, str]


def reference_row(board: Board, student: str) -> RowKey | None:
    """The supervised row with the largest data fraction and, of these, the most epochs."""
    rows = [
        r for r in board.rows_of(student) if r.method == REFERENCE and not board.is_submitted(r)
    ]
    return max(rows, key=lambda r: (r.fraction, r.epochs or 0.0, r.order()), default=None)


def normalised(board: Board, student: str) -> list[Normalised]:
    """The means of all complete rows, the best first.

    It is empty if there is a single task, no complete reference, a task with unknown chance, or a
    task on which the reference is not better than chance by MIN_RANGE.
    """
    columns = compare.columns_of(board, student)
    reference = reference_row(board, student)
    rows = compare.complete_rows(board, student)
    if reference is None or reference not in rows or len(columns) < 2:
        return []
    ranges: dict[Column, tuple[float, float]] = {}  # task -> (chance, reference)
    for column in columns:
        chance, reference_score = board.chance[column], _mean(board, reference, column)
        if chance is None or column.sign * (reference_score - chance) < MIN_RANGE:
            return []
        ranges[column] = (chance, reference_score)
    table = [_normalise(board, row, columns, ranges) for row in rows]
    return sorted(table, key=lambda n: (-n.mean, n.row.order()))


def _normalise(
    board: Board,
    row: RowKey,
    columns: Sequence[Column],
    ranges: Mapping[Column, tuple[float, float]],
) -> Normalised:
    raw, scores = {}, {}
    for column in columns:
        chance, reference_score = ranges[column]
        raw[column] = _mean(board, row, column)
        scores[column] = (raw[column] - chance) / (reference_score - chance)
    means_without_one = [
        (_weighted(scores, [c for c in columns if c != left_out]), left_out.task)
        for left_out in columns
    ]
    return Normalised(
        row,
        _weighted(raw, columns),
        _weighted(scores, columns),
        min(means_without_one),
        max(means_without_one),
    )


def _mean(board: Board, row: RowKey, column: Column) -> float:
    estimate = board.result(row, column).estimate
    assert estimate is not None  # rows are complete
    return estimate.mean


def _weighted(values: Mapping[Column, float], columns: Sequence[Column]) -> float:
    weights = compare.task_weights(columns)
    return sum(w * values[c] for w, c in zip(weights, columns, strict=True))

"""Curves of score against budget, and the factor by which a method needs less of a budget.

A line contains the rows of one method with different budgets, for example several numbers of
epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdep_bench.flops import FORWARD_AND_BACKWARD
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.compare import columns_of, complete_rows, task_weights
from kdep_bench.results.board.row_summary import summarize_row
from kdep_bench.results.budget_axis import Axis
from kdep_bench.results.statistics import intervals as st

AXES: dict[Axis, str] = {
    "images": "distinct images",
    "images_seen": "images seen",
    "seconds": "pre-training time (with teacher cache)",
    "flops": "FLOPs (with teacher)",
    "flops_without_teacher": "FLOPs (without teacher)",
}


def amount(board: Board, row: RowKey, axis: Axis) -> float | None:
    """The budget of the row's pre-training in the unit of `axis`; None if it is unknown or 0."""
    run = next((r for r in board.runs_of(row) if r.status == "ok"), None)
    if run is None:
        return None
    summary = summarize_row(board, row)
    if axis == "seconds":
        value = summary.cost_s
    elif axis == "images":
        value = None if board.lacks_pretraining(row) else run.data.images
    elif axis == "images_seen":
        value = run.budget.images_seen
    else:
        value = _student_flops(run.budget.images_seen, summary.student.flops)
        if axis == "flops" and value is not None and summary.teacher is not None:
            passes = _teacher_passes(run.data.images, run.budget.views)
            teacher = summary.teacher.flops
            value = None if teacher is None or passes is None else value + teacher * passes
    return float(value) if value else None


def _student_flops(images_seen: int | None, forward: float | None) -> float | None:
    """FLOPs of the student's training; `forward`: FLOPs of its forward pass."""
    if images_seen is None or forward is None:
        return None
    return images_seen * forward * FORWARD_AND_BACKWARD


def _teacher_passes(images: int | None, views: int | None) -> int | None:
    """Number of the teacher's forward passes for its cache."""
    return None if images is None or views is None else images * views


@dataclass(frozen=True, slots=True)
class ReductionFactor:
    """How much less of a budget a line needs to reach the score of a reference row.

    Attributes:
        log_ratios: seed pair -> log(budget of the reference / budget of the line at its score).
        n_lower_bounds: number of ratios that are lower bounds: the line's smallest budget reaches
            the score.
        n_upper_bounds: number of ratios that are upper bounds: the line's largest budget does not
            reach the score.
    """

    log_ratios: dict[st.Key, float]
    n_lower_bounds: int
    n_upper_bounds: int

    @property
    def estimate(self) -> st.Estimate:
        """The logarithm of the ratio, with its interval."""
        return st.estimate(self.log_ratios)

    @property
    def bound(self) -> str:
        """'at least', 'at most', 'mixed bounds:' (both occur) or, for a plain ratio, ''."""
        if self.n_lower_bounds and self.n_upper_bounds:
            return "mixed bounds:"
        if self.n_lower_bounds:
            return "at least"
        return "at most" if self.n_upper_bounds else ""

    @property
    def is_bound_for_all(self) -> bool:
        """Whether the ratio of every seed pair is a lower bound, or of every one an upper bound."""
        return max(self.n_lower_bounds, self.n_upper_bounds) == len(self.log_ratios)


def reduction_factor(
    board: Board,
    curve: list[RowKey],
    goal: RowKey,
    columns: list[Column],
    axis: Axis,
    margin: float = 0.0,
) -> ReductionFactor | None:
    """The factor by which `curve` needs less of a budget than `goal` for the same score.

    For each seed pair, the curve's score (a mean over `columns`) is made monotone by a running
    maximum and interpolated linearly in the logarithm of the budget.

    Args:
        curve: rows of one method with different budgets.
        goal: the row whose score is to be reached.
        axis: the kind of budget.
        margin: added to the score of `goal`, which is a fraction: 0.01 is one point.

    Returns:
        None if fewer than two budgets of `curve` are known.
    """
    amounts = {row: x for row in curve if (x := amount(board, row, axis))}
    goal_amount = amount(board, goal, axis)
    rows = sorted(amounts, key=lambda row: (amounts[row], row.order()))
    if goal_amount is None or len(set(amounts.values())) < 2:
        return None
    weights = task_weights(columns)
    *curve_scores, goal_scores = (
        st.mean_over([_signed(board, row, c) for c in columns], weights) for row in [*rows, goal]
    )
    if not set(goal_scores).intersection(*curve_scores):
        return None
    logs = [math.log(amounts[row]) for row in rows]
    reached = log_budgets_at_goal(logs, curve_scores, goal_scores, margin)
    n_lower_bounds = n_upper_bounds = 0
    for key in reached:
        y = [scores[key] for scores in curve_scores]
        target = goal_scores[key] + margin
        n_lower_bounds += y[0] >= target
        n_upper_bounds += max(y) < target
    return ReductionFactor(
        {k: math.log(goal_amount) - v for k, v in reached.items()}, n_lower_bounds, n_upper_bounds
    )


def log_budgets_at_goal(
    logs: Sequence[float], curve: Sequence[st.Values], goal: st.Values, margin: float = 0.0
) -> dict[st.Key, float]:
    """Seed pair -> log(budget) at which `curve` reaches the score of `goal` plus `margin`.

    Args:
        logs: log(budget) of each point of the curve, ascending.
        curve: the scores of each point by seed pair; larger is better.
        goal: the scores to reach, by seed pair.
        margin: added to the scores of `goal`.
    """
    reached: dict[st.Key, float] = {}
    for key in sorted(set(goal).intersection(*curve)):
        y = np.maximum.accumulate([scores[key] for scores in curve])
        reached[key] = _log_budget_at(np.asarray(logs), y, goal[key] + margin)
    return reached


def lines_of(board: Board, rows: Sequence[RowKey], axis: Axis) -> dict[str, list[RowKey]]:
    """Label -> the rows of one line on `axis`, with one method and teacher.

    The rows of a line also have the same data fraction. On the axis "images" they have the same
    number of images seen instead, because there the points of a line are data fractions. If this
    gives only lines of one point, the method has one line per teacher, with all rows of that
    teacher. The label is the method. If the method has several lines, the label also has the
    teacher, and the data fraction or number of images seen of the line.
    """
    lines: dict[str, list[RowKey]] = {}
    for method in sorted({a.method for a in rows}):
        method_rows = [a for a in rows if a.method == method]
        parts = _parts(board, method_rows, axis)
        teachers = {teacher for teacher, _ in parts}
        n_fixed_values = len({fixed_value for _, fixed_value in parts})
        for (teacher, fixed_value), line_rows in sorted(parts.items(), key=_line_order):
            extra = [teacher or "no teacher"] if len(teachers) > 1 else []
            if fixed_value is not None and n_fixed_values > 1:
                shown = f"{fixed_value / 1e6:.3g} M images seen"
                extra.append(shown if axis == "images" else f"{100 * fixed_value:g} % data")
            lines[" · ".join([method, *extra])] = line_rows
    return lines


def _parts(
    board: Board, rows: Sequence[RowKey], axis: Axis
) -> dict[tuple[str, float | None], list[RowKey]]:
    """(teacher, value that the rows of a line share) -> rows of the line; see `lines_of`.

    The shared value is a data fraction, or on the axis "images" a number of images seen. It is None
    if a line has all rows of the teacher.
    """
    by_fraction: dict[tuple[str, float | None], list[RowKey]] = {}
    by_teacher: dict[tuple[str, float | None], list[RowKey]] = {}
    for a in rows:
        fixed_value = amount(board, a, "images_seen") if axis == "images" else a.fraction
        by_fraction.setdefault((a.teacher, fixed_value), []).append(a)
        by_teacher.setdefault((a.teacher, None), []).append(a)
    amounts = {a: amount(board, a, axis) for a in rows}
    has_line = any(
        len({amounts[a] for a in line_rows} - {None}) > 1 for line_rows in by_fraction.values()
    )
    return by_fraction if has_line else by_teacher


def _line_order(part: tuple[tuple[str, float | None], list[RowKey]]) -> tuple[str, float]:
    (teacher, fixed_value), _ = part
    return teacher, -(fixed_value or 0.0)


def reduction_factors(
    board: Board, student: str
) -> list[tuple[str, RowKey, Axis, ReductionFactor]]:
    """(label of the line, reference row, axis, factor) of every line with two or more budgets.

    Only complete rows are used, and no line of the method supervised. Scores are means over all
    tasks of the student. The reference is the supervised row with the largest data fraction and, of
    these, the most epochs.
    """
    columns = columns_of(board, student)
    complete = complete_rows(board, student)
    goals = [a for a in complete if a.method == "supervised"]
    if not goals:
        return []
    goal = max(goals, key=lambda a: (a.fraction, a.epochs or 0.0, a.teacher))
    table = []
    for method in sorted({a.method for a in complete} - {goal.method}):
        method_rows = [a for a in complete if a.method == method]
        for axis in AXES:
            for label, curve in lines_of(board, method_rows, axis).items():
                factor = reduction_factor(board, curve, goal, columns, axis)
                if factor is not None:
                    table.append((label, goal, axis, factor))
    return table


def _signed(board: Board, row: RowKey, column: Column) -> dict[st.Key, float]:
    return {k: column.sign * v for k, v in board.values(row, column).items()}


def _log_budget_at(logs: np.ndarray, y: np.ndarray, target: float) -> float:
    """log(budget) at which the monotone curve `y` first reaches `target`.

    If `target` is outside the curve, the nearest end of the curve is returned.
    """
    i = int(np.searchsorted(y, target, side="left"))
    if i == 0:
        return float(logs[0])
    if i == len(y):
        return float(logs[-1])
    weight = (target - y[i - 1]) / (y[i] - y[i - 1])
    return float(logs[i - 1] + weight * (logs[i] - logs[i - 1]))

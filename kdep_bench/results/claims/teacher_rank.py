"""Claims of kind `rank_correlation`: whether better teachers give better students."""

from __future__ import annotations

import math

import numpy as np

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.row_summary import summarize_row
from kdep_bench.results.claims.rulings import missing_results, ruling_of, untestable_verdict
from kdep_bench.results.claims.schema import Claim
from kdep_bench.results.claims.verdict import Ruling, Verdict
from kdep_bench.results.statistics import intervals as st

# With fewer teachers the interval covers less than 95 % (simulated in tests/results).
FEWEST_TEACHERS = 8


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    def rank(v: np.ndarray) -> np.ndarray:
        return (v[None, :] < v[:, None]).sum(1) + ((v[None, :] == v[:, None]).sum(1) - 1) / 2

    rx, ry = rank(x), rank(y)
    if rx.std() == 0 or ry.std() == 0:
        return 0.0
    return float(np.corrcoef(rx, ry)[0, 1])


def correlation_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """(rho, low, high): Spearman's rho of `x` and `y` [n], n >= 4, with its 95 % interval.

    The interval is that of Fisher's z with the standard error sqrt((1 + rho^2 / 2) / (n - 3)) of
    Bonett and Wright (2000). It uses Student's t with n - 2 degrees of freedom, because the number
    of teachers is small.
    """
    n = len(x)
    rho = float(np.clip(_spearman(x, y), -0.9999, 0.9999))
    half = st.t_quantile(n - 2) * ((1 + rho**2 / 2) / (n - 3)) ** 0.5
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _rank_value(board: Board, claim: Claim, row: RowKey) -> float | None:
    """The value by which the claim ranks the teacher of a row; None if it is unknown."""
    summary = summarize_row(board, row)
    if isinstance(claim.by, dict):
        return claim.by.get(row.teacher)
    if claim.by == "top1":
        return None if summary.teacher is None else summary.teacher.top1
    return None if summary.align is None else summary.align.explained_variance_ratio


def judge_teacher_rank(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    """The verdict on a rank correlation for one student, over the tasks `columns`.

    Each teacher has one row: that with the largest data fraction and the most epochs.
    """
    rows: dict[str, RowKey] = {}
    for row in sorted(board.rows_of(student), key=lambda a: (a.fraction, a.epochs or 0.0)):
        if (
            row.method in claim.a.methods
            and row.teacher
            and not missing_results(board, [row], columns)
        ):
            rows[row.teacher] = row
    points = []
    for _, row in sorted(rows.items()):
        rank_value = _rank_value(board, claim, row)
        means = [c.sign * e.mean for c in columns if (e := board.result(row, c).estimate)]
        if rank_value is not None:
            points.append(
                (rank_value, float(np.average(means, weights=compare.task_weights(columns))))
            )
    if len(points) < 2:
        why = (
            f"a rank correlation needs {FEWEST_TEACHERS} teachers with complete results; there are "
            f"{len(points)}"
        )
        return untestable_verdict(claim, student, why, scope)
    is_lower_bound = claim.at_least is not None
    bound = claim.at_least if claim.at_least is not None else claim.at_most
    assert bound is not None
    ruling: Ruling = "undecided"
    x, y = np.array(points).T
    if len(points) < FEWEST_TEACHERS:
        shown = f"{_spearman(x, y):+.2f}"
        reason = f"{len(points)} teachers; an interval needs {FEWEST_TEACHERS} or more"
    else:
        rho, low, high = correlation_interval(x, y)
        ruling = ruling_of(low, high, bound) if is_lower_bound else ruling_of(-high, -low, -bound)
        shown = f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]"
        reason = f"Spearman's rank correlation over {len(points)} teachers"
    return Verdict(
        claim.name,
        claim.title,
        student,
        scope,
        ruling,
        shown,
        f"{'>=' if is_lower_bound else '<='} {bound:g}",
        "—",
        None,
        reason,
        claim.statement,
        claim.source,
    )

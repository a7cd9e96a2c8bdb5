"""Claims of kind `rank_correlation`: whether better teachers give better students."""

from __future__ import annotations

import numpy as np

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.row_summary import summarize_row
from kdep_bench.results.board.teachers import key_of
from kdep_bench.results.claims.rulings import missing_results, ruling_of, untestable_verdict
from kdep_bench.results.claims.schema import Claim
from kdep_bench.results.claims.verdict import Ruling, Verdict
from kdep_bench.results.statistics.rank_correlation import MIN_POINTS, spearman
from kdep_bench.results.teacher_measures import PROBED


def _rank_value(board: Board, claim: Claim, row: RowKey) -> float | None:
    """The value by which the claim ranks the teacher of a row; None if it is unknown."""
    summary = summarize_row(board, row)
    if isinstance(claim.by, dict):
        return claim.by.get(row.teacher)
    if claim.by == "top1":
        return None if summary.teacher is None else summary.teacher.top1
    if claim.by in PROBED:
        return board.teacher_measures.get(key_of(row), {}).get(claim.by)
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
            f"a rank correlation needs {MIN_POINTS} teachers with complete results; there are "
            f"{len(points)}"
        )
        return untestable_verdict(claim, student, why, scope)
    is_lower_bound = claim.at_least is not None
    bound = claim.at_least if claim.at_least is not None else claim.at_most
    assert bound is not None
    ruling: Ruling = "undecided"
    x, y = np.array(points).T
    correlation = spearman(x, y)
    if correlation is None:
        shown = "—"
        reason = f"{len(points)} teachers; no ranks, because there are two, or all values are equal"
    elif correlation.low is None or correlation.high is None:
        shown = f"{correlation.value:+.2f}"
        reason = f"{len(points)} teachers; an interval needs {MIN_POINTS} or more"
    else:
        low, high = correlation.low, correlation.high
        ruling = ruling_of(low, high, bound) if is_lower_bound else ruling_of(-high, -low, -bound)
        shown = f"{correlation.value:+.2f} [{low:+.2f}, {high:+.2f}]"
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
        kind=claim.kind,
    )

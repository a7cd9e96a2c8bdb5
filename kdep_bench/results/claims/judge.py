"""Verdicts on claims: the records are compared with the threshold of each claim config.

There are three kinds of claims. Each claim is a dict in configs/claims/<name>.py.

* `difference`: row `a` scores more than `margin` above row `b`, at no more than `max_cost_ratio`
  times the pre-training cost of `b`. With a negative margin, `a` may be worse by less than that.
* `efficiency`: method `a` reaches the score of `b` plus `margin` with at most the fraction
  1 / `at_least` of the budget of `b`. `axis` is the kind of budget. The budget of `a` is read off
  its curve of score against budget (see kdep_bench/results/board/efficiency.py).
* `rank_correlation`: over several teachers, Spearman's correlation of the student's score with `by`
  is at most `at_most` or at least `at_least`. `by` is the explained variance ratio of the
  alignment, the teacher's reported accuracy "top1", a measure of the probe `teacher`
  (kdep_bench/results/teacher_measures.py), or a dict teacher -> number. The claim is undecided with
  fewer than `rank_correlation.MIN_POINTS` teachers.

Verdicts:

* "supported", "refuted": the 95 % interval is entirely on one side of the threshold, also after
  Holm's correction, and for a verdict over all tasks no task family has the opposite verdict. A
  `difference` is also refuted if the cost ratio is above `max_cost_ratio`.
* "undecided": otherwise, with the number of seeds that would decide it, if it is known.
* "not testable here": the records of a row are missing.

A rank correlation and a verdict on a cost ratio have no p value, so they are not corrected.

Costs include the alignment, and the teacher cache in proportion to the data fraction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board
from kdep_bench.results.claims.rulings import judge_difference, judge_efficiency, untestable_verdict
from kdep_bench.results.claims.schema import Claim, make_claim
from kdep_bench.results.claims.teacher_rank import judge_teacher_rank
from kdep_bench.results.claims.verdict import NOT_TESTABLE, Verdict, headlines
from kdep_bench.results.statistics import intervals as st
from kdep_bench.results.statistics import pooled


def judge(board: Board, claims: list[dict[str, Any]]) -> list[Verdict]:
    """The verdicts of `claims` on `board`, in the order of the claims.

    Raises:
        KdepError: a claim is invalid, or two claims have the same name.
    """
    checked_claims = [make_claim(c) for c in claims]
    names = [c.name for c in checked_claims]
    if len(set(names)) < len(names):
        duplicate = next(n for n in names if names.count(n) > 1)
        raise KdepError(f"two claims are named {duplicate!r}", fix="rename one of them")
    verdicts = []
    for claim in checked_claims:
        by_student = [_judge_student(board, claim, s) for s in board.students]
        all_verdicts = [v for student_verdicts in by_student for v in student_verdicts]
        tested = [
            v
            for student_verdicts in by_student
            if any(w.verdict != NOT_TESTABLE for w in student_verdicts)
            for v in student_verdicts
        ]
        # If no student can test the claim, the table has one line for it, not one per student.
        verdicts += (
            tested or all_verdicts[:1] or [untestable_verdict(claim, "", "there are no records")]
        )
    return _corrected(verdicts)


def _corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts after Holm's correction.

    It is made separately for the verdicts over all tasks and for those on single task families. A
    verdict that is supported or refuted only without the correction becomes undecided. A verdict
    without a p value (on a rank correlation or a cost ratio) stays as it is.
    """
    first = headlines(verdicts)
    corrected = {}
    for group in (first, [v for v in verdicts if v not in first]):
        tested = {i: v for i, v in enumerate(group) if v.p is not None}
        adjusted = pooled.holm({i: v.p for i, v in tested.items() if v.p is not None})
        for i, v in tested.items():
            if v.verdict in ("supported", "refuted") and adjusted[i] >= 1 - st.LEVEL:
                reason = (
                    f"p = {text.p_value(adjusted[i])} after Holm's correction for {len(tested)} "
                    f"verdicts; without the correction it would be {v.verdict}"
                )
                corrected[id(v)] = replace(v, verdict="undecided", reason=reason)
    return [corrected.get(id(v), v) for v in verdicts]


def _judge_student(board: Board, claim: Claim, student: str) -> list[Verdict]:
    """The verdicts for one student: per task family, then over all tasks."""
    columns = compare.columns_of(board, student)
    if claim.families is not None:
        columns = [c for c in columns if c.family in claim.families]
    if not columns:
        return [untestable_verdict(claim, student, "no task of these families is in the records")]
    families = sorted({c.family for c in columns})
    scopes = [(f, [c for c in columns if c.family == f]) for f in families]
    if len(families) > 1:
        all_tasks = ("all tasks", columns)
        scopes = [*scopes, all_tasks] if claim.per_family else [all_tasks]
    rule = {
        "difference": judge_difference,
        "efficiency": judge_efficiency,
        "rank_correlation": judge_teacher_rank,
    }[claim.kind]
    verdicts = [
        rule(board, claim, student, scope, scope_columns) for scope, scope_columns in scopes
    ]
    if all(v.verdict == NOT_TESTABLE for v in verdicts):
        return verdicts[-1:]
    if claim.per_family and len(verdicts) > 1:
        verdicts[-1] = _unless_families_disagree(verdicts[-1], verdicts[:-1])
    return verdicts


def _unless_families_disagree(overall: Verdict, families: list[Verdict]) -> Verdict:
    """The verdict over all tasks; undecided if a task family has the opposite verdict.

    One task with a large difference can dominate a mean over tasks. A claim must not be supported
    over all tasks if a task family refutes it.
    """
    opposite = {"supported": "refuted", "refuted": "supported"}.get(overall.verdict)
    if opposite is None or not any(v.verdict == opposite for v in families):
        return overall
    family_verdicts = ", ".join(f"{v.verdict} on {v.scope}" for v in families)
    return replace(
        overall,
        verdict="undecided",
        reason=f"the task families disagree: {family_verdicts}; the mean alone would be "
        f"{overall.verdict}",
    )

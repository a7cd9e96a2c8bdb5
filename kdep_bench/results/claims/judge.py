"""Verdicts on claims: each claim config has a threshold, tested on the records.

Three kinds, each a dict in configs/claims/<name>.py:

* `difference`: row `a` scores at least `margin` above row `b` (a negative margin: not worse than
  that), at no more than `max_cost_ratio` times its pre-training cost;
* `efficiency`: method `a` needs at least `at_least` times less of `axis` to reach the score that
  `b` has at its largest budget; read off a's curve by monotone interpolation in log(axis);
* `rank_correlation`: over teachers, Spearman's correlation of `by` (the explained variance ratio
  of the alignment, the reported accuracy 'top1', or a number by teacher name) with the score,
  against `at_most` or `at_least`. Undecided below `FEWEST_TEACHERS`.

A verdict is 'supported' or 'refuted' only where the 95 % interval is entirely on one side;
otherwise 'undecided', with the seeds that would decide it, and over all tasks also where a family's
own verdict is the opposite one; 'not testable here' where a row is not
in the records. Costs include the alignment and, by data fraction, the teacher cache.
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
        KdepError: a claim is malformed, or two have one name.
    """
    made = [make_claim(c) for c in claims]
    names = [c.name for c in made]
    if len(set(names)) < len(names):
        double = next(n for n in names if names.count(n) > 1)
        raise KdepError(f"two claims are named {double!r}", fix="rename one of them")
    verdicts = []
    for claim in made:
        by_student = [_judge_student(board, claim, s) for s in board.students]
        all_verdicts = [v for student_verdicts in by_student for v in student_verdicts]
        tested = [
            v
            for student_verdicts in by_student
            if any(w.verdict != NOT_TESTABLE for w in student_verdicts)
            for v in student_verdicts
        ]
        # A claim that no student can test needs one line, not one per student.
        verdicts += (
            tested or all_verdicts[:1] or [untestable_verdict(claim, "", "there are no records")]
        )
    return _corrected(verdicts)


def _corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """Holm's correction, over the headlines and over the verdicts on single task families: what is
    supported or refuted alone, but not together with the others, is undecided. Cost bounds are no
    tests."""
    first = headlines(verdicts)
    corrected = {}
    for group in (first, [v for v in verdicts if v not in first]):
        tested = {i: v for i, v in enumerate(group) if v.p is not None}
        adjusted = pooled.holm({i: v.p for i, v in tested.items() if v.p is not None})
        for i, v in tested.items():
            if v.verdict in ("supported", "refuted") and adjusted[i] >= 1 - st.LEVEL:
                reason = (
                    f"{v.verdict} if it were the only claim; with Holm's correction for "
                    f"{len(tested)} claims p = {text.p_value(adjusted[i])}"
                )
                corrected[id(v)] = replace(v, verdict="undecided", reason=reason)
    return [corrected.get(id(v), v) for v in verdicts]


def _judge_student(board: Board, claim: Claim, student: str) -> list[Verdict]:
    columns = compare.columns_of(board, student)
    if claim.families is not None:
        columns = [c for c in columns if c.family in claim.families]
    if not columns:
        return [untestable_verdict(claim, student, "no task of these families is in the records")]
    families = sorted({c.family for c in columns})
    scopes = [(f, [c for c in columns if c.family == f]) for f in families]
    if len(families) == 1:
        pass
    elif claim.per_family:
        scopes.append(("all tasks", columns))
    else:
        scopes = [("all tasks", columns)]
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
    """`overall`, or undecided where a task family's own verdict is the opposite one.

    One task with a large difference can dominate a mean over tasks; the headline must not be
    'supported' where a family of tasks refutes the claim.
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

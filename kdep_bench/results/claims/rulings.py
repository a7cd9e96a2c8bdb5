"""Verdicts on one claim for one student: score differences, and budgets for equal score."""

from __future__ import annotations

import math

from kdep_bench.results import text
from kdep_bench.results.board import compare, efficiency
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.row_summary import summarize_row
from kdep_bench.results.claims.schema import Claim, Side, pick
from kdep_bench.results.claims.verdict import NOT_TESTABLE, Ruling, Verdict
from kdep_bench.results.statistics import intervals as st
from kdep_bench.results.statistics import power


def untestable_verdict(claim: Claim, student: str, why: str, scope: str = "all tasks") -> Verdict:
    """The verdict "not testable here", with the reason `why`."""
    return _verdict(claim, student, scope, NOT_TESTABLE, reason=why)


def _verdict(
    claim: Claim,
    student: str,
    scope: str,
    ruling: Ruling,
    *,
    reason: str,
    interval: str = "—",
    threshold: str = "—",
    cost: str = "—",
    seeds_to_decide: int | None = None,
    p: float | None = None,
    limit: str = "",
    difference: st.Estimate | None = None,
) -> Verdict:
    """A verdict on `claim`; the other arguments are fields of `Verdict`."""
    return Verdict(
        claim.name,
        claim.title,
        student,
        scope,
        ruling,
        interval,
        threshold,
        cost,
        seeds_to_decide,
        reason,
        claim.statement,
        claim.source,
        p,
        limit,
        difference,
        claim.kind,
    )


def _pick(board: Board, student: str, side: Side) -> RowKey | None:
    return pick(board.rows_of(student), side, board.lacks_pretraining)


def _name(side: Side) -> str:
    fraction = "" if side.share is None else f" at {100 * side.share:g} % of the data"
    return " or ".join(side.methods) + fraction


def missing_results(board: Board, rows: list[RowKey], columns: list[Column]) -> int:
    """Number of results of `rows` on `columns` that are not complete."""
    return sum(not board.result(a, c).is_complete for a in rows for c in columns)


def _cost_ratio(board: Board, a: RowKey, b: RowKey) -> float | None:
    """Pre-training cost of a divided by that of b; None if unknown, or b was not pre-trained."""
    if board.lacks_pretraining(b):
        return None
    cost_a, cost_b = summarize_row(board, a).cost_s, summarize_row(board, b).cost_s
    return cost_a / cost_b if cost_a is not None and cost_b else None


def ruling_of(low: float | None, high: float | None, threshold: float) -> Ruling:
    """Supported if the interval [low, high] is above the threshold, refuted if it is below."""
    if low is not None and low > threshold + st.ROUNDING:
        return "supported"
    if high is not None and high < threshold - st.ROUNDING:
        return "refuted"
    return "undecided"


def _seeds(est: st.Estimate, threshold: float, n_seeds: int) -> int | None:
    """Number of seeds for which the interval excludes the threshold with power 0.8.

    It assumes that the measured mean and standard deviation are the true ones. `n_seeds`: present
    number of independent seeds.
    """
    if est.se is None or est.df is None:
        return None
    df_per_seed = max(1.0, est.df / max(1, n_seeds - 1))
    sd = est.se * n_seeds**0.5
    return power.seeds_needed(est.mean - threshold, sd, df_per_seed=df_per_seed)


def _limit(values: st.Values) -> str:
    """The text "for one pre-trained network" if there is one pre-training seed, otherwise ""."""
    return "for one pre-trained network" if len({k[0] for k in values}) == 1 else ""


def _independent_seeds(values: st.Values) -> int:
    """Number of pre-training seeds; if there is only one, the number of transfer seeds."""
    pretrain, transfer = {k[0] for k in values}, {k[1] for k in values}
    return len(pretrain) if len(pretrain) > 1 else len(transfer)


def judge_difference(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    """The verdict on a claim of kind `difference` for one student, over the tasks `columns`."""
    assert claim.b is not None
    a, b = _pick(board, student, claim.a), _pick(board, student, claim.b)
    for row, side in ((a, claim.a), (b, claim.b)):
        if row is None:
            return untestable_verdict(claim, student, f"no records of {_name(side)}", scope)
    assert a is not None
    assert b is not None
    if a == b:
        why = f"both sides are the same row, {_name(claim.a)}"
        return untestable_verdict(claim, student, why, scope)
    est, paired = compare.estimate(board, a, b, columns)
    n_missing = missing_results(board, [a, b], columns)
    if n_missing:
        est, ruling, seeds = None, "undecided", None
        reason = f"{n_missing} of the scores have failed or missing seeds, so there is no mean"
    else:
        ruling, reason, seeds = _rule_on_margin(est, claim.margin, paired)
    p = None if est is None or est.low is None else st.p_two_sided(est, claim.margin)
    ratio = _cost_ratio(board, a, b)
    threshold = f"> {text.points(claim.margin, True)}"
    if claim.max_cost_ratio is not None:
        threshold += f" at <= {claim.max_cost_ratio:g} times the cost"
        if ratio is None and ruling == "supported":
            ruling, reason = "undecided", "the cost of one method is unknown"
        elif ratio is not None and ratio > claim.max_cost_ratio:
            ruling, seeds, p = "refuted", None, None  # a comparison of costs has no p value
            reason = f"the pre-training cost is {ratio:.2f} times that of the second method"
    return _verdict(
        claim,
        student,
        scope,
        ruling,
        reason=reason,
        interval=text.gap(est),
        threshold=threshold,
        cost="—" if ratio is None else f"{ratio:.2f}",
        seeds_to_decide=seeds,
        p=p,
        limit=_limit(paired),
        difference=est,
    )


def _rule_on_margin(
    est: st.Estimate | None, margin: float, paired: st.Values
) -> tuple[Ruling, str, int | None]:
    """(ruling, reason, seeds needed) for a mean difference; `paired`: its paired differences."""
    if est is None:
        return "undecided", "the two methods have no common seed pair", None
    if est.low is None:
        return "undecided", "with one seed pair there is no interval", None
    ruling, reason = ruling_of(est.low, est.high, margin), est.seeds
    if ruling != "undecided":
        return ruling, reason, None
    seeds = _seeds(est, margin, _independent_seeds(paired))
    reason += "; the interval contains the threshold"
    if seeds is None:
        reason += f", and more than {st.MAX_SEEDS} seeds would be needed to decide"
    return ruling, reason, seeds


def judge_efficiency(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    """The verdict on a claim of kind `efficiency` for one student, over the tasks `columns`."""
    assert claim.b is not None
    assert claim.at_least is not None
    goal = _pick(board, student, claim.b)
    if goal is None:
        return untestable_verdict(claim, student, f"no records of {_name(claim.b)}", scope)
    if missing_results(board, [goal], columns):
        why = f"{_name(claim.b)} has failed or missing seeds"
        return untestable_verdict(claim, student, why, scope)
    line, curve = _curve(board, claim, student, columns)
    reduction = efficiency.reduction_factor(board, curve, goal, columns, claim.axis, claim.margin)
    if reduction is None:
        why = f"{_name(claim.a)} needs complete results for two or more values of {claim.axis}"
        return untestable_verdict(claim, student, why, scope)
    est = reduction.estimate
    log_threshold = math.log(claim.at_least)
    ruling, reason = _rule_on_reduction(reduction, log_threshold, line)
    seeds = None  # outside the curve, more seeds do not help
    if ruling == "undecided" and not (reduction.n_lower_bounds or reduction.n_upper_bounds):
        seeds = _seeds(est, log_threshold, _independent_seeds(reduction.log_ratios))
    return _verdict(
        claim,
        student,
        scope,
        ruling,
        reason=reason,
        interval=text.reduction(reduction),
        threshold=f"reduction factor >= {claim.at_least:g} for {efficiency.AXES[claim.axis]}",
        seeds_to_decide=seeds,
        p=None if est.low is None else st.p_two_sided(est, log_threshold),
        limit=_limit(reduction.log_ratios),
    )


def _curve(
    board: Board, claim: Claim, student: str, columns: list[Column]
) -> tuple[str, list[RowKey]]:
    """(label of the line, its complete rows) for side `a`.

    The label is "" if the method of `a` has one line; ("", []) if no line contains the row of `a`.
    """
    methods = {row.method for row in board.rows_of(student)}
    method = next((m for m in claim.a.methods if m in methods), None)
    curve = [
        row
        for row in board.rows_of(student)
        if row.method == method and not missing_results(board, [row], columns)
    ]
    lines = efficiency.lines_of(board, curve, claim.axis)
    if len(lines) < 2:
        return "", curve
    # The method has several lines, for teachers or data fractions: take the line of side `a`.
    row_a = _pick(board, student, claim.a)
    return next(((label, rows) for label, rows in lines.items() if row_a in rows), ("", []))


def _rule_on_reduction(
    reduction: efficiency.ReductionFactor, log_threshold: float, line: str
) -> tuple[Ruling, str]:
    """(ruling, reason) for a reduction factor; `line`: label of the line, which begins the reason.

    A lower bound can only support a claim, an upper bound can only refute it.
    """
    est = reduction.estimate
    ruling = ruling_of(est.low, est.high, log_threshold)
    reason = f"{reduction.bound} {text.factor(est.mean)} times, from {est.seeds}".lstrip()
    reason = f"{line}: {reason}" if line else reason
    if reduction.n_lower_bounds and reduction.n_upper_bounds:
        return "undecided", "the score is below the curve for some seeds and above it for others"
    if reduction.n_lower_bounds and ruling == "refuted":
        return "undecided", reason + "; the smallest budget already reaches the score"
    if reduction.n_upper_bounds and ruling == "supported":
        return "undecided", reason + "; the largest budget does not reach the score"
    return ruling, reason

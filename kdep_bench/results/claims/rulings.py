"""How one claim is decided on one student: differences at a budget, and budgets to a score."""

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
    return Verdict(
        claim.name,
        claim.title,
        student,
        scope,
        NOT_TESTABLE,
        "—",
        "—",
        "—",
        None,
        why,
        claim.statement,
        claim.source,
    )


def _pick(board: Board, student: str, side: Side) -> RowKey | None:
    return pick(board.rows_of(student), side, board.fixed)


def _name(side: Side) -> str:
    share = "" if side.share is None else f" at {100 * side.share:g} % of the data"
    return " or ".join(side.methods) + share


def missing_results(board: Board, rows: list[RowKey], columns: list[Column]) -> int:
    return sum(not board.result(a, c).complete for a in rows for c in columns)


def _cost_ratio(board: Board, a: RowKey, b: RowKey) -> float | None:
    """None also against an arm without pre-training: nothing was spent that could be compared."""
    if board.fixed(b):
        return None
    x, y = summarize_row(board, a).cost_s, summarize_row(board, b).cost_s
    return x / y if x is not None and y else None


def ruling_of(low: float | None, high: float | None, threshold: float) -> Ruling:
    if low is not None and low > threshold + st.ROUNDING:
        return "supported"
    if high is not None and high < threshold - st.ROUNDING:
        return "refuted"
    return "undecided"


def _seeds(est: st.Estimate, threshold: float, units: int) -> int | None:
    """Seeds that would put the threshold outside the interval with power 0.8, were the mean and
    spread what they look like now."""
    if est.se is None or est.df is None:
        return None
    per_seed = max(1.0, est.df / max(1, units - 1))
    return power.seeds_needed(est.mean - threshold, est.se * units**0.5, df_per_seed=per_seed)


def _networks(values: st.Values) -> str:
    """ "of one network" where every value has the same pre-training seed."""
    return "of one network" if len({k[0] for k in values}) == 1 else ""


def _units(values: st.Values) -> int:
    pretrain, transfer = {k[0] for k in values}, {k[1] for k in values}
    return len(pretrain) if len(pretrain) > 1 else len(transfer)


def judge_difference(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    assert claim.b is not None
    a, b = _pick(board, student, claim.a), _pick(board, student, claim.b)
    for row, side in ((a, claim.a), (b, claim.b)):
        if row is None:
            return untestable_verdict(claim, student, f"no records of {_name(side)}", scope)
    assert a is not None
    assert b is not None
    if a == b:
        return untestable_verdict(
            claim, student, f"both sides are the same row, {_name(claim.a)}", scope
        )
    est, found = compare.estimate(board, a, b, columns)
    ratio = _cost_ratio(board, a, b)
    cost = "—" if ratio is None else f"{ratio:.2f}"
    holes = missing_results(board, [a, b], columns)
    ruling: Ruling = "undecided"
    more = p = None
    if holes:
        reason = f"failed or missing seeds in {holes} of the scores, so no mean is computed"
        est = None
    elif est is None:
        reason = "the two methods share no seed pair"
    elif est.low is None:
        reason = "with one seed pair there is no interval"
    else:
        ruling, p = ruling_of(est.low, est.high, claim.margin), st.p_two_sided(est, claim.margin)
        reason = f"over {est.seeds}"
        if ruling == "undecided":
            more = _seeds(est, claim.margin, _units(found))
            reason += ": the interval contains the threshold"
            if more is None:
                reason += f", and more than {st.MOST_SEEDS} seeds would be needed"
    threshold = f"> {text.points(claim.margin, True)}"
    if claim.max_cost_ratio is not None:
        threshold += f" at <= {claim.max_cost_ratio:g} x the cost"
        if ratio is None and ruling == "supported":
            ruling, reason = "undecided", "the cost of one method is unknown"
        elif ratio is not None and ratio > claim.max_cost_ratio:
            ruling, more, p = "refuted", None, None
            reason = f"the cost is {ratio:.2f} x, teacher cache included"
    return Verdict(
        claim.name,
        claim.title,
        student,
        scope,
        ruling,
        text.gap(est),
        threshold,
        cost,
        more,
        reason,
        claim.statement,
        claim.source,
        p,
        _networks(found),
    )


def judge_efficiency(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    assert claim.b is not None
    assert claim.at_least is not None
    goal = _pick(board, student, claim.b)
    if goal is None:
        return untestable_verdict(claim, student, f"no records of {_name(claim.b)}", scope)
    there = {row.method for row in board.rows_of(student)}
    method = next((m for m in claim.a.methods if m in there), None)
    curve = [
        row
        for row in board.rows_of(student)
        if row.method == method and not missing_results(board, [row], columns)
    ]
    if missing_results(board, [goal], columns):
        return untestable_verdict(
            claim, student, f"{_name(claim.b)} has failed or missing seeds", scope
        )
    lines = efficiency.lines_of(board, curve, claim.axis)
    line = ""
    if len(lines) > 1:  # of several teachers or shares: the line of the arm that the side means
        meant = _pick(board, student, claim.a)
        line, curve = next(((n, some) for n, some in lines.items() if meant in some), ("", []))
    found = efficiency.saving(board, curve, goal, columns, claim.axis, claim.margin)
    if found is None:
        why = f"the curve of {_name(claim.a)} over {claim.axis} needs at least two complete points"
        return untestable_verdict(claim, student, why, scope)
    est = found.estimate
    goal_log = math.log(claim.at_least)
    ruling = ruling_of(est.low, est.high, goal_log)
    reason = f"{found.bound} {math.exp(est.mean):.2g} x, over {est.seeds}".lstrip()
    reason = f"{line}: {reason}" if line else reason
    if found.at_least and found.at_most:
        ruling, reason = (
            "undecided",
            "the target score is below the curve for some seeds and above it for others",
        )
    elif found.at_least and ruling == "refuted":
        ruling, reason = "undecided", reason + ": the smallest budget already reaches the score"
    elif found.at_most and ruling == "supported":
        ruling, reason = "undecided", reason + ": the largest budget does not reach the score"
    more = _seeds(est, goal_log, _units(found.log_ratios)) if ruling == "undecided" else None
    if found.at_least or found.at_most:
        more = None  # more seeds do not move the end of a curve
    return Verdict(
        claim.name,
        claim.title,
        student,
        scope,
        ruling,
        text.times(est, found.bound),
        f">= {claim.at_least:g} x less {efficiency.AXES[claim.axis]}",
        "—",
        more,
        reason,
        claim.statement,
        claim.source,
        None if est.low is None else st.p_two_sided(est, goal_log),
        _networks(found.log_ratios),
    )

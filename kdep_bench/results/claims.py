"""Claims as code: a config says what would have to be measured, the records answer.

Three kinds, each a dict in configs/claims/<name>.py:

* `difference`: arm `a` scores at least `margin` above arm `b` (a negative margin: not worse than
  that), at no more than `max_cost_ratio` times its pre-training cost;
* `efficiency`: method `a` needs at least `at_least` times less of `axis` to reach the score that
  `b` has at its largest budget; read off a's curve by monotone interpolation in log(axis);
* `rank_correlation`: over teachers, Spearman's correlation of `by` (the explained variance ratio
  of the alignment, the reported accuracy 'top1', or a number by teacher name) with the score,
  against `at_most` or `at_least`. Undecided below `FEWEST_TEACHERS`.

A verdict is 'supported' or 'refuted' only where the 95 % interval lies wholly on one side;
otherwise 'undecided', with the seeds that would decide it, and over all tasks also where a family's
own verdict is the opposite one; 'not testable here' where an arm is not
in the records. Costs hold the teacher cache of the data share and the alignment.
"""

from __future__ import annotations

import math
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdep_bench.errors import KdepError
from kdep_bench.results import compare, efficiency, pooled, text
from kdep_bench.results import statistics as st
from kdep_bench.results.claim import Claim, Side, make_claim, pick
from kdep_bench.results.table import ArmKey, Board, Column, arm_facts

Ruling = Literal["supported", "refuted", "undecided", "not testable here"]
NOT_TESTABLE: Ruling = "not testable here"
# With fewer the interval below covers less than it says (simulated in tests/results).
FEWEST_TEACHERS = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one student and scope (a task family, or all tasks); texts ready to show."""

    name: str
    title: str
    student: str
    scope: str
    verdict: Ruling
    interval: str
    threshold: str
    cost: str
    seeds_to_decide: int | None
    reason: str
    statement: str = ""
    source: str = ""
    p: float | None = None  # two-sided, of a true value at the threshold; None without an interval
    limit: str = ""  # what the verdict rests on where that is little: "of one network"

    @property
    def shown(self) -> str:
        """The verdict with its limit, for tables."""
        return f"{self.verdict} ({self.limit})" if self.limit else self.verdict


def headlines(verdicts: list[Verdict]) -> list[Verdict]:
    """One verdict a claim and student: over all tasks, or over the only family there is."""
    last = {(v.name, v.student): v for v in verdicts}  # `judge` puts the widest scope last
    return list(last.values())


def load_config(path: Path) -> dict[str, Any]:
    """The dict `claim` of a claim config."""
    try:
        if "read_base" in path.read_text():
            from mmengine.config import Config  # only here: importing it costs half a second

            return dict(Config.fromfile(path).to_dict()["claim"])
        return dict(runpy.run_path(str(path))["claim"])
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a config is code: anything may come out of it, SystemExit too
        raise KdepError(
            f"the claim config {path} cannot be used ({type(e).__name__}: {e})",
            expected="a Python file that defines claim = dict(...)",
            fix="correct the file",
        ) from None


def load_folder(folder: Path) -> list[dict[str, Any]]:
    """Every claim of a folder of configs, by file name."""
    return [load_config(p) for p in sorted(folder.glob("*.py")) if not p.name.startswith("_")]


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
        found = [v for some in by_student for v in some]
        tested = [
            v for some in by_student if any(w.verdict != NOT_TESTABLE for w in some) for v in some
        ]
        # One line says that nothing here can test a claim; a line for every student would not.
        verdicts += tested or found[:1] or [_untestable(claim, "", "there are no records")]
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
        return [_untestable(claim, student, "no task of these families is in the records")]
    families = sorted({c.family for c in columns})
    scopes = [(f, [c for c in columns if c.family == f]) for f in families]
    if len(families) == 1:
        pass
    elif claim.per_family:
        scopes.append(("all tasks", columns))
    else:
        scopes = [("all tasks", columns)]
    rule = {
        "difference": _difference,
        "efficiency": _efficiency,
        "rank_correlation": _rank_correlation,
    }[claim.kind]
    found = [rule(board, claim, student, scope, some) for scope, some in scopes]
    if all(v.verdict == NOT_TESTABLE for v in found):
        return found[-1:]
    if claim.per_family and len(found) > 1:
        found[-1] = _unless_families_disagree(found[-1], found[:-1])
    return found


def _unless_families_disagree(overall: Verdict, families: list[Verdict]) -> Verdict:
    """`overall`, or undecided where a task family's own verdict is the opposite one.

    A mean over tasks can be carried by one task with a large gap; a headline must not say
    'supported' of a claim that a whole family of tasks refutes.
    """
    opposite = {"supported": "refuted", "refuted": "supported"}.get(overall.verdict)
    if opposite is None or not any(v.verdict == opposite for v in families):
        return overall
    apart = ", ".join(f"{v.verdict} on {v.scope}" for v in families)
    return replace(
        overall,
        verdict="undecided",
        reason=f"the task families disagree: {apart}; the mean alone would be {overall.verdict}",
    )


def _untestable(claim: Claim, student: str, why: str, scope: str = "all tasks") -> Verdict:
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


def _pick(board: Board, student: str, side: Side) -> ArmKey | None:
    return pick(board.arms_of(student), side, board.fixed)


def _name(side: Side) -> str:
    share = "" if side.share is None else f" at {100 * side.share:g} % of the data"
    return " or ".join(side.methods) + share


def _holes(board: Board, arms: list[ArmKey], columns: list[Column]) -> int:
    return sum(not board.cell(a, c).complete for a in arms for c in columns)


def _cost_ratio(board: Board, a: ArmKey, b: ArmKey) -> float | None:
    """None also against an arm without pre-training: nothing was spent that could be compared."""
    if board.fixed(b):
        return None
    x, y = arm_facts(board, a).cost_s, arm_facts(board, b).cost_s
    return x / y if x is not None and y else None


def _rule(low: float | None, high: float | None, threshold: float) -> Ruling:
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
    return st.seeds_needed(est.mean - threshold, est.se * units**0.5, df_per_seed=per_seed)


def _networks(values: st.Values) -> str:
    """ "of one network" where every value has the same pre-training seed."""
    return "of one network" if len({k[0] for k in values}) == 1 else ""


def _units(values: st.Values) -> int:
    pretrain, transfer = {k[0] for k in values}, {k[1] for k in values}
    return len(pretrain) if len(pretrain) > 1 else len(transfer)


def _difference(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    assert claim.b is not None
    a, b = _pick(board, student, claim.a), _pick(board, student, claim.b)
    for arm, side in ((a, claim.a), (b, claim.b)):
        if arm is None:
            return _untestable(claim, student, f"no records of {_name(side)}", scope)
    assert a is not None
    assert b is not None
    if a == b:
        return _untestable(claim, student, f"both sides are the same row, {_name(claim.a)}", scope)
    est, found = compare.estimate(board, a, b, columns)
    ratio = _cost_ratio(board, a, b)
    cost = "—" if ratio is None else f"{ratio:.2f}"
    holes = _holes(board, [a, b], columns)
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
        ruling, p = _rule(est.low, est.high, claim.margin), st.p_two_sided(est, claim.margin)
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


def _efficiency(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    assert claim.b is not None
    assert claim.at_least is not None
    goal = _pick(board, student, claim.b)
    if goal is None:
        return _untestable(claim, student, f"no records of {_name(claim.b)}", scope)
    there = {arm.method for arm in board.arms_of(student)}
    method = next((m for m in claim.a.methods if m in there), None)
    curve = [
        arm
        for arm in board.arms_of(student)
        if arm.method == method and not _holes(board, [arm], columns)
    ]
    if _holes(board, [goal], columns):
        return _untestable(claim, student, f"{_name(claim.b)} has failed or missing seeds", scope)
    lines = efficiency.lines_of(board, curve, claim.axis)
    line = ""
    if len(lines) > 1:  # of several teachers or shares: the line of the arm that the side means
        meant = _pick(board, student, claim.a)
        line, curve = next(((n, some) for n, some in lines.items() if meant in some), ("", []))
    found = efficiency.saving(board, curve, goal, columns, claim.axis, claim.margin)
    if found is None:
        why = f"the curve of {_name(claim.a)} over {claim.axis} needs at least two complete points"
        return _untestable(claim, student, why, scope)
    est = found.estimate
    goal_log = math.log(claim.at_least)
    ruling = _rule(est.low, est.high, goal_log)
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


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    def rank(v: np.ndarray) -> np.ndarray:
        return (v[None, :] < v[:, None]).sum(1) + ((v[None, :] == v[:, None]).sum(1) - 1) / 2

    rx, ry = rank(x), rank(y)
    if rx.std() == 0 or ry.std() == 0:
        return 0.0
    return float(np.corrcoef(rx, ry)[0, 1])


def correlation_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho of `x`, `y` [n], n >= 4, with its 95 % interval.

    Fisher's z with the standard error sqrt((1 + rho^2 / 2) / (n - 3)) of Bonett and Wright (2000),
    and Student's t with n - 2 degrees of freedom for the few teachers there are.
    """
    n = len(x)
    rho = float(np.clip(_spearman(x, y), -0.9999, 0.9999))
    half = st.t_quantile(n - 2) * ((1 + rho**2 / 2) / (n - 3)) ** 0.5
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _of_teacher(board: Board, claim: Claim, arm: ArmKey) -> float | None:
    """What the claim ranks teachers by; None where the arm's records do not know it."""
    facts = arm_facts(board, arm)
    if isinstance(claim.by, dict):
        return claim.by.get(arm.teacher)
    if claim.by == "top1":
        return None if facts.teacher is None else facts.teacher.top1
    return None if facts.align is None else facts.align.explained_variance_ratio


def _rank_correlation(
    board: Board, claim: Claim, student: str, scope: str, columns: list[Column]
) -> Verdict:
    """Each teacher by its arm of most data and longest training."""
    arms: dict[str, ArmKey] = {}
    for arm in sorted(board.arms_of(student), key=lambda a: (a.share, a.epochs or 0.0)):
        if arm.method in claim.a.methods and arm.teacher and not _holes(board, [arm], columns):
            arms[arm.teacher] = arm
    points = []
    for _, arm in sorted(arms.items()):
        by = _of_teacher(board, claim, arm)
        means = [c.sign * e.mean for c in columns if (e := board.cell(arm, c).estimate)]
        if by is not None:
            points.append((by, float(np.average(means, weights=compare.task_weights(columns)))))
    if len(points) < 2:
        why = f"needs {FEWEST_TEACHERS} teachers with complete results; {len(points)} here"
        return _untestable(claim, student, why, scope)
    least = claim.at_least is not None
    bound = claim.at_least if claim.at_least is not None else claim.at_most
    assert bound is not None
    ruling: Ruling = "undecided"
    x, y = np.array(points).T
    if len(points) < FEWEST_TEACHERS:
        shown = f"{_spearman(x, y):+.2f}"
        reason = f"{len(points)} teachers; an interval needs {FEWEST_TEACHERS} or more"
    else:
        rho, low, high = correlation_interval(x, y)
        ruling = _rule(low, high, bound) if least else _rule(-high, -low, -bound)
        shown = f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]"
        reason = f"Spearman over {len(points)} teachers"
    return Verdict(
        claim.name,
        claim.title,
        student,
        scope,
        ruling,
        shown,
        f"{'>=' if least else '<='} {bound:g}",
        "—",
        None,
        reason,
        claim.statement,
        claim.source,
    )

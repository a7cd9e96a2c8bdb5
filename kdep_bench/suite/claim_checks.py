"""Whether a suite can test its claims: asked when it is planned, not when it has run.

A claim is refused that names a method, share, teacher, number of epochs or task family which the
suite has not got, that compares an arm with itself, or whose curve or correlation has fewer than
two points. Records alone (`tools/report.py`) still answer such a claim with 'not testable here'.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.results.claims.schema import Claim, Side, make_claim, pick, with_epochs
from kdep_bench.suite.arms import trains
from kdep_bench.suite.config import names
from kdep_bench.suite.schema import Json


class _Cell(Protocol):
    """What is read of a planned cell; see plan.Cell."""

    @property
    def method(self) -> Json: ...
    @property
    def student(self) -> Json: ...
    @property
    def teacher(self) -> Json | None: ...
    @property
    def task(self) -> Json: ...
    @property
    def share(self) -> float: ...


class Arm(NamedTuple):
    """One row of the leaderboard to be; `epochs` of its own images, 0 without pre-training."""

    student: str
    method: str
    teacher: str
    share: float
    epochs: float
    aligned: bool


def arm(cell: _Cell, budget: Json | None) -> Arm:
    """The arm of a planned cell; `budget` is what its pre-training stage is given."""
    epochs = 0.0
    if budget:
        over_pool = budget.get("epochs_over") == "pool"
        epochs = budget["epochs"] / (cell.share if over_pool else 1.0)
    return Arm(
        cell.student["name"],
        cell.method["name"],
        "" if cell.teacher is None else cell.teacher["name"],
        cell.share,
        epochs if trains(cell.method) else 0.0,
        bool(cell.method.get("align")),
    )


def check_claims(claims: Iterable[Json], arms: Iterable[Arm], families: Iterable[str]) -> None:
    """Raises KdepError for the first claim that these arms cannot test, whatever they measure."""
    every, known = sorted(set(arms)), sorted(set(families))
    for fields in claims:
        claim = make_claim(fields)
        for family in claim.families or ():
            if family not in known:
                raise unknown_name(f"task family of the claim {claim.name!r}", family, known)
        rule = {
            "difference": _difference,
            "efficiency": _efficiency,
            "rank_correlation": _rank_correlation,
        }[claim.kind]
        rule(claim, every)


def _untrained(arm: Arm) -> bool:
    return arm.epochs == 0


def _students(arms: list[Arm]) -> list[list[Arm]]:
    students = sorted({a.student for a in arms})
    return [[a for a in arms if a.student == student] for student in students]


def _check_side(claim: Claim, which: str, side: Side, arms: list[Arm]) -> None:
    """KdepError where no arm of any student is the one that a side means: what it lacks."""
    where = f"{which} of the claim {claim.name!r}"
    methods = {a.method for a in arms}
    found = [a for a in arms if a.method in side.methods]
    if not found:
        raise _unknown_method(where, side.methods[0], methods)
    if side.share is not None:
        share = side.share
        shares = sorted({a.share for a in found})
        found = [a for a in found if math.isclose(a.share, share) or _untrained(a)]
        if not found:
            raise KdepError(
                f"{where} has the data fraction {share:g}, but the suite does not run "
                f"{' or '.join(side.methods)} at that fraction",
                expected=f"one of {', '.join(f'{s:g}' for s in shares)}",
                fix=f"correct {which}.share in the claim, or add the fraction to the suite's "
                "`shares`",
            )
    if side.epochs is not None:
        epochs = sorted({a.epochs for a in found})
        found = with_epochs(found, side.epochs)
        if not found:
            raise KdepError(
                f"{where} has {side.epochs:g} epochs, but the suite does not run "
                f"{' or '.join(side.methods)} for that many",
                expected=f"one of {', '.join(f'{e:g}' for e in epochs)}",
                fix=f"correct {which}.epochs in the claim, or leave it out for the longest "
                "training",
            )
    teachers = {a.teacher for a in found}
    if side.teacher is not None and side.teacher not in teachers:
        if teachers == {""}:
            raise KdepError(
                f"{where} names the teacher {side.teacher!r}, but {' or '.join(side.methods)} "
                "uses no teacher",
                fix=f"remove {which}.teacher from the claim",
            )
        raise unknown_name(f"teacher in {where}", side.teacher, teachers - {""})


def _unknown_method(where: str, name: str, methods: set[str]) -> KdepError:
    """The nearest method of the suite; of all configs where no method of the suite is near."""
    near = difflib.get_close_matches(name, sorted(methods), n=1, cutoff=0.5)
    other = difflib.get_close_matches(name, names("method"), n=1, cutoff=0.5)
    hint = f"add {other[0]} to the suite's methods" if other and not near else ""
    hint = f"{hint}, or choose one of: {', '.join(sorted(methods))}" if hint else ""
    return unknown_name(f"method in {where}", name, methods, fix=hint)


def _difference(claim: Claim, arms: list[Arm]) -> None:
    assert claim.b is not None
    _check_side(claim, "a", claim.a, arms)
    _check_side(claim, "b", claim.b, arms)
    both = [(pick(own, claim.a, _untrained), pick(own, claim.b, _untrained)) for own in
            _students(arms)]  # fmt: skip
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    if not pairs:
        raise KdepError(
            f"the claim {claim.name!r} compares {' or '.join(claim.a.methods)} with "
            f"{' or '.join(claim.b.methods)}, but the suite runs both for no student",
            fix="correct `a` or `b` of the claim, or add the missing method to the suite",
        )
    if all(a == b for a, b in pairs):
        one = pairs[0][0]
        raise KdepError(
            f"the claim {claim.name!r} compares the method {one.method!r} at the data fraction "
            f"{one.share:g} with itself",
            expected="sides that differ in method, data fraction, epochs or teacher",
            fix="correct `a` or `b` of the claim",
        )


def _efficiency(claim: Claim, arms: list[Arm]) -> None:
    assert claim.b is not None
    _check_side(claim, "a", claim.a, arms)
    _check_side(claim, "b", claim.b, arms)
    there = {a.method for a in arms}
    method = next(m for m in claim.a.methods if m in there)
    lines = [
        {(a.share, a.epochs) for a in own if a.method == method and a.teacher == teacher}
        for own in _students(arms)
        for teacher in {a.teacher for a in own if a.method == method}
    ]
    if max(map(len, lines)) < 2:
        raise KdepError(
            f"the claim {claim.name!r} needs a curve of {method!r} over {claim.axis}, but the "
            "suite has one value only",
            expected="two or more data fractions or numbers of epochs",
            fix="add data fractions or variants to the suite, or remove the claim",
        )


def _rank_correlation(claim: Claim, arms: list[Arm]) -> None:
    _check_side(claim, "a", claim.a, arms)
    found = [a for a in arms if a.method in claim.a.methods and a.teacher]
    if isinstance(claim.by, dict):
        teachers = {a.teacher for a in found}
        for name in claim.by:
            if name not in teachers:
                raise unknown_name(f"teacher in `by` of the claim {claim.name!r}", name, teachers)
        found = [a for a in found if a.teacher in claim.by]
    elif claim.by == "explained_variance_ratio":
        found = [a for a in found if a.aligned]
    most = max((len({a.teacher for a in own}) for own in _students(found)), default=0)
    if most < 2:
        raise KdepError(
            f"the claim {claim.name!r} ranks teachers, but the suite has {most} of "
            f"{' or '.join(claim.a.methods)} to rank",
            expected="two or more teachers (eight for a verdict)",
            fix="add variants with other teachers to the suite, or remove the claim",
        )

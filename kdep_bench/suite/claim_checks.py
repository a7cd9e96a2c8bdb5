"""Checks, when a suite is planned, that it can test its claims.

It is an error if a claim names a method, data fraction, teacher, number of epochs or task family
that the suite does not have, compares a row with itself, or needs a curve or correlation that would
have fewer than two points. `tools/report.py` reads only records and reports such claims as 'not
testable here'.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.results.claims.schema import Claim, Side, make_claim, pick, with_epochs
from kdep_bench.results.teacher_measures import PROBED
from kdep_bench.suite.config import names
from kdep_bench.suite.methods import row_name, trains
from kdep_bench.suite.schema import Json

TEACHER_PROBE = "teacher"  # a copy of `board.teachers.PROBE`, whose module imports numpy


class _Run(Protocol):
    """The attributes of a graph.TransferRun that are read here."""

    @property
    def method(self) -> Json: ...
    @property
    def student(self) -> Json: ...
    @property
    def teacher(self) -> Json | None: ...
    @property
    def task(self) -> Json: ...
    @property
    def fraction(self) -> float: ...


class PlannedRow(NamedTuple):
    """One row of the leaderboard.

    Attributes:
        student, method, teacher: names; teacher "" if there is none.
        fraction: fraction of the pre-training images.
        epochs: passes over that fraction; 0 without pre-training.
        is_aligned: whether the method aligns the feature of a single teacher.
    """

    student: str
    method: str
    teacher: str
    fraction: float
    epochs: float
    is_aligned: bool


def planned_row(run: _Run, budget: Json | None) -> PlannedRow:
    """The row of a planned run.

    `budget`: that of the spec of the run's pre-training stage; None without pre-training.
    """
    epochs = 0.0
    if budget:
        over_pool = budget.get("epochs_over") == "pool"
        epochs = budget["epochs"] / (run.fraction if over_pool else 1.0)
    return PlannedRow(
        run.student["name"],
        row_name(run.method),
        "" if run.teacher is None else run.teacher["name"],
        run.fraction,
        epochs if trains(run.method) else 0.0,
        bool(run.method.get("align")) and run.method.get("teachers") is None,
    )


def check_claims(
    claims: Iterable[Json],
    rows: Iterable[PlannedRow],
    families: Iterable[str],
    probes: Iterable[str] = (),
) -> None:
    """Raises KdepError for claims that these rows cannot test.

    Args:
        claims: the claims' configs.
        rows: the rows that the suite plans.
        families: task families of the suite.
        probes: names of the suite's probes.
    """
    all_rows, known_families = sorted(set(rows)), sorted(set(families))
    probe_names = set(probes)
    faults = Faults()
    for fields in claims:
        with faults.collect():
            _check_claim(make_claim(fields), all_rows, known_families, probe_names)
    faults.raise_any("the suite")


def _check_claim(
    claim: Claim, all_rows: list[PlannedRow], families: list[str], probes: set[str]
) -> None:
    """Raises KdepError if these rows cannot test a claim; see `check_claims`."""
    if not all_rows:
        raise KdepError(
            f"the suite has the claim {claim.name!r}, but no task or no method to test it",
            fix="add `tasks` and `methods` to the suite, or remove its claims",
        )
    for family in claim.families or ():
        if family not in families:
            raise unknown_name("task family", family, families, place=f"the claim {claim.name!r}")
    check_claim = {
        "difference": _check_difference,
        "efficiency": _check_efficiency,
        "rank_correlation": _check_rank_correlation,
    }[claim.kind]
    check_claim(claim, all_rows)
    measured = isinstance(claim.by, str) and claim.by in PROBED
    if measured and TEACHER_PROBE not in probes:
        raise KdepError(
            f"the claim {claim.name!r} ranks teachers by their {claim.by}, which the probe "
            f"{TEACHER_PROBE!r} measures, but the suite does not have this probe",
            fix=f"add {TEACHER_PROBE!r} to the suite's `probes`, or change `by` of the claim",
        )


def _is_untrained(row: PlannedRow) -> bool:
    return row.epochs == 0


def _rows_by_student(rows: list[PlannedRow]) -> list[list[PlannedRow]]:
    students = sorted({row.student for row in rows})
    return [[row for row in rows if row.student == student] for student in students]


def _check_side(claim: Claim, side_name: str, side: Side, rows: list[PlannedRow]) -> None:
    """Raises KdepError if no row fits the description of a side ('a' or 'b') of a claim."""
    where = f"`{side_name}` of the claim {claim.name!r}"
    methods = {row.method for row in rows}
    candidates = [row for row in rows if row.method in side.methods]
    if not candidates:
        raise _missing_method(claim, side_name, side, methods)
    if side.share is not None:
        fraction = side.share
        fractions = sorted({row.fraction for row in candidates})
        candidates = [
            row for row in candidates if math.isclose(row.fraction, fraction) or _is_untrained(row)
        ]
        if not candidates:
            raise KdepError(
                f"{where} has the data fraction {fraction:g}, but the suite does not run "
                f"{' or '.join(side.methods)} at that fraction",
                expected=f"a data fraction of the suite: {', '.join(f'{s:g}' for s in fractions)}",
                fix=f"correct {side_name}.share in the claim, or add the fraction to the suite's "
                "`shares`",
            )
    if side.epochs is not None:
        epochs = sorted({row.epochs for row in candidates})
        candidates = with_epochs(candidates, side.epochs)
        if not candidates:
            raise KdepError(
                f"{where} has {side.epochs:g} epochs, but the suite does not run "
                f"{' or '.join(side.methods)} for that many",
                expected=f"epochs of the suite: {', '.join(f'{e:g}' for e in epochs)}",
                fix=f"correct {side_name}.epochs in the claim, or leave it out for the longest "
                "training",
            )
    teachers = {row.teacher for row in candidates}
    if side.teacher is not None and side.teacher not in teachers:
        if teachers == {""}:
            raise KdepError(
                f"{where} names the teacher {side.teacher!r}, but the method "
                f"{' or '.join(side.methods)} uses no teacher",
                fix=f"remove {side_name}.teacher from the claim",
            )
        raise unknown_name("teacher", side.teacher, teachers - {""}, place=where)


def _missing_method(claim: Claim, side_name: str, side: Side, methods: set[str]) -> KdepError:
    """The error for a side of a claim whose method the suite does not run.

    If there is no method of that name, the error suggests the most similar one.
    """
    name, configs = side.methods[0], names("method")
    fix = "add it to the suite's `methods`, or remove the claim"
    if name not in configs:
        similar = difflib.get_close_matches(name, [*sorted(methods), *configs], n=1, cutoff=0.6)
        fix = f"correct `{side_name}` of the claim"
        fix += f": did you mean {similar[0]}?" if similar else ""
    return KdepError(
        f"the claim {claim.name!r} is about the method {' or '.join(side.methods)!r} "
        f"(`{side_name}`), which the suite does not run",
        expected=f"one of: {', '.join(sorted(methods))}",
        fix=fix,
    )


def _check_difference(claim: Claim, rows: list[PlannedRow]) -> None:
    """Raises KdepError unless a student has rows for both sides, and they are different rows."""
    assert claim.b is not None
    _check_side(claim, "a", claim.a, rows)
    _check_side(claim, "b", claim.b, rows)
    sides = (claim.a, claim.b)
    pairs_by_student = [
        [pick(student_rows, side, _is_untrained) for side in sides]
        for student_rows in _rows_by_student(rows)
    ]
    pairs = [(a, b) for a, b in pairs_by_student if a is not None and b is not None]
    if not pairs:
        raise KdepError(
            f"the claim {claim.name!r} compares {' or '.join(claim.a.methods)} with "
            f"{' or '.join(claim.b.methods)}, but the suite has no student with both",
            fix="correct `a` or `b` of the claim, or add the missing method to the suite",
        )
    if all(a == b for a, b in pairs):
        row = pairs[0][0]
        raise KdepError(
            f"the claim {claim.name!r} compares the method {row.method!r} at the data fraction "
            f"{row.fraction:g} with itself",
            expected="sides that differ in method, data fraction, epochs or teacher",
            fix="correct `a` or `b` of the claim",
        )


def _check_efficiency(claim: Claim, rows: list[PlannedRow]) -> None:
    """Raises KdepError if a side has no rows, or side `a` has no curve of two or more points."""
    assert claim.b is not None
    _check_side(claim, "a", claim.a, rows)
    _check_side(claim, "b", claim.b, rows)
    methods = {row.method for row in rows}
    method = next(m for m in claim.a.methods if m in methods)
    curves = [  # the points of each curve: one curve per student and teacher
        {
            (row.fraction, row.epochs)
            for row in student_rows
            if row.method == method and row.teacher == teacher
        }
        for student_rows in _rows_by_student(rows)
        for teacher in {row.teacher for row in student_rows if row.method == method}
    ]
    if max(map(len, curves)) < 2:
        raise KdepError(
            f"the claim {claim.name!r} needs a curve of {method!r} over {claim.axis}, but the "
            "suite has only one value",
            expected="two or more data fractions or numbers of epochs",
            fix="add data fractions or variants to the suite, or remove the claim",
        )


def _check_rank_correlation(claim: Claim, rows: list[PlannedRow]) -> None:
    """Raises KdepError if side `a` has no rows, or fewer than two teachers."""
    _check_side(claim, "a", claim.a, rows)
    candidates = [row for row in rows if row.method in claim.a.methods and row.teacher]
    if isinstance(claim.by, dict):
        teachers = {row.teacher for row in candidates}
        for name in claim.by:
            if name not in teachers:
                raise unknown_name(
                    "teacher", name, teachers, place=f"`by` of the claim {claim.name!r}"
                )
        candidates = [row for row in candidates if row.teacher in claim.by]
    elif claim.by == "explained_variance_ratio":
        candidates = [row for row in candidates if row.is_aligned]
    teacher_counts = (
        len({row.teacher for row in student_rows}) for student_rows in _rows_by_student(candidates)
    )
    n_teachers = max(teacher_counts, default=0)
    if n_teachers < 2:
        raise KdepError(
            f"the claim {claim.name!r} ranks teachers, but the suite has the method "
            f"{' or '.join(claim.a.methods)} with {'one' if n_teachers else 'no'} teacher",
            expected="two or more teachers (eight for a verdict)",
            fix="add variants with other teachers to the suite, or remove the claim",
        )

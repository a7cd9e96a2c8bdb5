"""Contrasts of an ablation: levels of a factor, compared where everything else is equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.statistics import intervals as st
from kdep_bench.results.statistics import pooled

# The levels of a factor of students are compared only if the largest student has at most this many
# times the parameters of the smallest.
EQUAL_PARAMETERS = 1.03


class Grid(BaseModel):
    """The factors of a suite, see `kdep_bench/suite/factors.py`.

    Attributes:
        levels: (factor, its levels); the others are compared with the first level.
        methods, students: name -> factor -> level.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    levels: list[list[str | list[str]]]
    methods: dict[str, dict[str, str]]
    students: dict[str, dict[str, str]]

    def factors(self) -> dict[str, list[str]]:
        """Factor -> its levels."""
        return {str(name): list(levels) for name, levels in self.levels}


class Contrast(NamedTuple):
    """One level of a factor against the factor's first level.

    Attributes:
        combinations: number of combinations of the other factors in which both were run.
        score, reference_score: means of the two levels over these combinations.
        estimate: mean difference over these combinations, paired by seeds, with its interval; None
            without a common combination or seed.
        p: two-sided p value after Holm's correction over all contrasts; None without an interval.
    """

    factor: str
    level: str
    reference: str
    combinations: int
    score: float | None
    reference_score: float | None
    estimate: st.Estimate | None
    p: float | None = None


@dataclass(frozen=True)
class Ablation:
    """All contrasts, the rows of the grid by their levels, and sentences on what is left out."""

    contrasts: Sequence[Contrast]
    rows: dict[RowKey, dict[str, str]]
    remarks: list[str] = field(default_factory=list)

    def best(self) -> dict[str, tuple[str, Contrast | None]]:
        """Factor -> (the level to take, its contrast with the first level).

        The level to take is the one with the largest mean difference among those significantly
        better than the first level. If no level is better, it is the first level, with None.
        """
        chosen: dict[str, tuple[str, Contrast | None]] = {}
        for c in self.contrasts:
            _, best = chosen.setdefault(c.factor, (c.reference, None))
            if c.estimate is None or c.p is None or c.p >= 1 - st.LEVEL or c.estimate.mean <= 0:
                continue
            if best is None or best.estimate is None or c.estimate.mean > best.estimate.mean:
                chosen[c.factor] = (c.level, c)
        return chosen


def ablation(board: Board, grid: Grid) -> Ablation:
    """The contrasts of every factor of the grid.

    Rows with an incomplete result are left out together with the combinations that need them. The
    levels of students are compared only at equal parameters.
    """
    remarks: list[str] = []
    rows = _grid_rows(board, grid, remarks)
    factors = grid.factors()
    if not _has_equal_parameters(board, grid, remarks):
        student_factors = {f for levels in grid.students.values() for f in levels}
        factors = {f: levels for f, levels in factors.items() if f not in student_factors}
    contrasts = [
        _contrast(board, rows, factor, level, levels[0])
        for factor, levels in factors.items()
        for level in levels[1:]
    ]
    adjusted = pooled.holm(
        {
            i: st.p_two_sided(c.estimate)
            for i, c in enumerate(contrasts)
            if c.estimate is not None and c.estimate.low is not None
        }
    )
    tested = [c._replace(p=adjusted.get(i)) for i, c in enumerate(contrasts)]
    return Ablation(tested, rows, remarks)


def _grid_rows(board: Board, grid: Grid, remarks: list[str]) -> dict[RowKey, dict[str, str]]:
    """The complete rows of the grid with the levels of their factors."""
    rows: dict[RowKey, dict[str, str]] = {}
    for row in board.rows:
        if row.method not in grid.methods:
            continue
        if grid.students and row.student not in grid.students:
            continue
        columns = compare.columns_of(board, row.student)
        if not all(board.result(row, c).is_complete for c in columns):
            remarks.append(
                f"Left out, because a result is missing or failed: {row.method} ({row.student})."
            )
            continue
        # Methods are compared within a student, also if students are not part of the grid.
        student_levels = grid.students.get(row.student, {"student": row.student})
        rows[row] = {**grid.methods[row.method], **student_levels}
    return rows


def _has_equal_parameters(board: Board, grid: Grid, remarks: list[str]) -> bool:
    """Whether the students of the grid have the same number of parameters, within a tolerance."""
    counts = {r.student.name: r.student.params for r in board.runs if r.student.params}
    students = [name for name in board.students if name in grid.students]
    if len(students) < 2:
        return True
    if unknown := [name for name in students if name not in counts]:
        reason = f"the number of parameters of {', '.join(unknown)} is not recorded"
    else:
        known = [counts[name] for name in students]
        ratio = max(known) / min(known)
        if ratio <= EQUAL_PARAMETERS:
            return True
        reason = (
            "they do not have equal numbers of parameters: the largest has "
            f"{ratio:.2f} times those of the smallest (at most {EQUAL_PARAMETERS:g})"
        )
    remarks.append(f"The levels of students are not compared, because {reason}.")
    return False


def _contrast(
    board: Board, rows: dict[RowKey, dict[str, str]], factor: str, level: str, reference: str
) -> Contrast:
    """One level of a factor against `reference`."""
    groups: dict[tuple, dict[str, RowKey]] = defaultdict(dict)
    for row, levels in rows.items():
        if factor in levels:
            other_levels = tuple(sorted((f, v) for f, v in levels.items() if f != factor))
            setting = (other_levels, row.fraction, row.epochs, row.teacher)
            groups[setting][levels[factor]] = row
    pairs = [(g[level], g[reference]) for g in groups.values() if level in g and reference in g]
    if not pairs:
        return Contrast(factor, level, reference, 0, None, None, None)
    differences = []
    for row, reference_row in pairs:
        columns = _common_columns(board, row, reference_row)
        gaps = [_signed_gaps(board, row, reference_row, c) for c in columns]
        differences.append(st.mean_over(gaps, compare.task_weights(columns)))
    by_seed = st.mean_over(differences)
    return Contrast(
        factor,
        level,
        reference,
        len(pairs),
        _mean_score(board, [row for row, _ in pairs]),
        _mean_score(board, [reference_row for _, reference_row in pairs]),
        st.estimate(by_seed) if by_seed else None,
    )


def _common_columns(board: Board, row: RowKey, reference_row: RowKey) -> list[Column]:
    """The tasks of both rows, whose students may differ."""
    columns = compare.columns_of(board, reference_row.student)
    return [c for c in compare.columns_of(board, row.student) if c in columns]


def _signed_gaps(
    board: Board, row: RowKey, reference_row: RowKey, column: Column
) -> dict[st.Key, float]:
    """Seed pair -> score of `row` minus that of `reference_row`; positive if `row` is better."""
    gaps = st.differences(board.values(row, column), board.values(reference_row, column))
    return {k: column.sign * v for k, v in gaps.items()}


def _mean_score(board: Board, rows: Sequence[RowKey]) -> float:
    """Mean over rows of the mean over tasks; every task family has the same weight."""
    return sum(mean_score(board, row) for row in rows) / len(rows)


def mean_score(board: Board, row: RowKey) -> float:
    """Mean over the tasks of a complete row; every task family has the same weight."""
    columns = compare.columns_of(board, row.student)
    estimates = [board.result(row, c).estimate for c in columns]
    weights = compare.task_weights(columns)
    return sum(w * e.mean for w, e in zip(weights, estimates, strict=True) if e is not None)

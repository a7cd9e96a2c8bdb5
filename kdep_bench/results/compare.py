"""What the tables say of a board: paired differences, best sets, ranks, noise floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdep_bench.results import statistics as st
from kdep_bench.results.table import ArmKey, Board, Column

BASE = "kdep"  # the method that the others are compared with
AGAINST = ("scratch", "supervised", "imagenet")


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` - `other` on a task (or the mean over `tasks`), larger is better for `arm`."""

    arm: ArmKey
    other: ArmKey
    column: Column | None
    tasks: int
    pairs: int
    estimate: st.Estimate | None

    @property
    def verdict(self) -> str:
        """'better', 'worse', 'not significant' or 'too few seed pairs'."""
        if self.estimate is None or self.estimate.low is None:
            return "too few seed pairs"
        if not self.estimate.told_from_zero:
            return "not significant"
        return "better" if self.estimate.mean > 0 else "worse"


def gaps(board: Board, arm: ArmKey, other: ArmKey, column: Column) -> dict[st.Key, float]:
    """arm - other by seed pair, signed so that positive is good for `arm`."""
    a, b = board.values(arm, column), board.values(other, column)
    found = st.differences(a, b, fixed_b=board.fixed(other))
    if not found and board.fixed(arm):
        found = {k: -v for k, v in st.differences(b, a, fixed_b=True).items()}
    return {k: column.sign * v for k, v in found.items()}


def difference(board: Board, arm: ArmKey, other: ArmKey, column: Column) -> Difference:
    """The paired difference of two rows on one task."""
    found = gaps(board, arm, other, column)
    est = st.estimate(found) if found else None
    return Difference(arm, other, column, 1, len(found), est)


def mean_difference(
    board: Board, arm: ArmKey, other: ArmKey, columns: list[Column]
) -> Difference | None:
    """The difference averaged over `columns`, where both rows are complete; else None."""
    if not columns or any(not board.cell(a, c).complete for a in (arm, other) for c in columns):
        return None
    found = st.mean_over([gaps(board, arm, other, c) for c in columns])
    est = st.estimate(found) if found else None
    return Difference(arm, other, None, len(columns), len(found), est)


def compared(board: Board, student: str) -> list[tuple[ArmKey, ArmKey]]:
    """The pairs of rows the difference table shows: each distilled row against each reference,
    and a rival against kdep."""
    pairs = []
    for arm in board.arms_of(student):
        if arm.method in AGAINST:
            continue
        for method in AGAINST if arm.method == BASE else (BASE, *AGAINST):
            other = board.counterpart(arm, method)
            if other is not None:
                pairs.append((arm, other))
    return pairs


def comparable(board: Board, student: str, column: Column) -> Mapping[ArmKey, st.Values]:
    """The values of a column's rows. A row without pre-training of its own, so with one
    pre-training seed, stands against every pre-training seed of the others."""
    cells = {a: v for a in board.arms_of(student) if (v := board.values(a, column))}
    seeds = {k[0] for v in cells.values() for k in v}
    for arm, values in cells.items():
        if len({k[0] for k in values}) == 1 < len(seeds) and board.fixed(arm):
            cells[arm] = {(p, t): v for p in sorted(seeds) for (_, t), v in values.items()}
    return cells


def best(board: Board, student: str, column: Column) -> set[ArmKey]:
    """The rows marked in a column: the best mean, and all not significantly worse. None where no
    row has two seeds: nothing can be tested there, and marking all would look like a tie."""
    cells = comparable(board, student, column)
    if all(len(v) < 2 for v in cells.values()):
        return set()
    return st.best_set(cells, column.sign)


def complete_rows(board: Board, student: str) -> list[ArmKey]:
    """Rows that have every column of the student, nothing failed or missing."""
    columns = columns_of(board, student)
    return [a for a in board.arms_of(student) if all(board.cell(a, c).complete for c in columns)]


def columns_of(board: Board, student: str) -> list[Column]:
    """Columns in which the student has any cell."""
    arms = board.arms_of(student)
    return [c for c in board.columns if any((a, c) in board.cells for a in arms)]


def mean_ranks(board: Board, student: str) -> dict[ArmKey, float]:
    """Mean rank of the complete rows among themselves."""
    columns = columns_of(board, student)
    table = {}
    for arm in complete_rows(board, student):
        means = [board.cell(arm, c).estimate for c in columns]
        table[arm] = [e.mean for e in means if e is not None]
    return st.mean_ranks(table, [c.sign for c in columns])


def ranks(board: Board, student: str, column: Column) -> dict[ArmKey, tuple[int, int]]:
    """Ranks each row may have on a task."""
    return st.rank_intervals(comparable(board, student, column), column.sign)


def noise(board: Board, student: str, column: Column) -> st.Noise | None:
    """Noise floor of a task for a student."""
    return st.noise_floor([board.values(a, column) for a in board.arms_of(student)])

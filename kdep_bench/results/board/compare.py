"""Comparisons of a board's rows: paired differences, best sets, ranks, noise floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.statistics import comparisons, pooled, power
from kdep_bench.results.statistics import intervals as st

BASE = "kdep"  # the method that the others are compared with
REFERENCE_METHODS = ("scratch", "supervised", "imagenet")


@dataclass(frozen=True, slots=True)
class Difference:
    """`row` - `reference` on the task `column`; positive: `row` is better.

    `column` None: the mean over `tasks` tasks. `pairs`: common seed pairs. `estimate`: the mean
    difference, a fraction, with its interval. `adjusted`: p after Holm's correction (see
    `difference_table`); None for a single difference.
    """

    row: RowKey
    reference: RowKey
    column: Column | None
    tasks: int
    pairs: int
    estimate: st.Estimate | None
    adjusted: float | None = None

    @property
    def p(self) -> float | None:
        """Two-sided p of no difference, not corrected; None where there is no interval."""
        if self.estimate is None or self.estimate.low is None:
            return None
        return st.p_two_sided(self.estimate)

    @property
    def significant(self) -> bool:
        """Whether p is below 5 %, after the correction where there is one."""
        p = self.p if self.adjusted is None else self.adjusted
        return p is not None and p < 1 - st.LEVEL

    @property
    def verdict(self) -> str:
        """'better', 'worse', 'not significant' or 'too few seed pairs'."""
        if self.estimate is None or self.p is None:
            return "too few seed pairs"
        if not self.significant:
            return "not significant"
        return "better" if self.estimate.mean > 0 else "worse"


def task_weights(columns: Sequence[Column]) -> list[float]:
    """Weight of each task in a mean over tasks; the weights sum to 1.

    Every task family has the same weight, and every task within its family: otherwise the mean over
    five tasks, three of them classification, would mostly be one over classification.
    """
    families = [c.family for c in columns]
    return [1 / (len(set(families)) * families.count(f)) for f in families]


def mean_name(columns: Sequence[Column]) -> str:
    """Name of a mean over tasks, as "mean of 5 tasks (3 task families, equal weights)"."""
    families = len({c.family for c in columns})
    weighting = f" ({families} task families, equal weights)" if families > 1 else ""
    tasks = f"{len(columns)} task{'s' if len(columns) != 1 else ''}"
    return f"mean of {tasks}{weighting}"


def gaps(board: Board, row: RowKey, reference: RowKey, column: Column) -> dict[st.Key, float]:
    """row - reference by seed pair; positive: `row` is better."""
    a, b = board.values(row, column), board.values(reference, column)
    paired = st.differences(a, b, fixed_b=board.fixed(reference))
    if not paired and board.fixed(row):
        paired = {k: -v for k, v in st.differences(b, a, fixed_b=True).items()}
    return {k: column.sign * v for k, v in paired.items()}


def model(board: Board, student: str, columns: Sequence[Column]) -> pooled.Pooled | None:
    """The pooled model of a student's rows on a task, or on the mean over several tasks.

    Scores are signed so that larger is better. A mean over tasks contains complete rows only. None
    where the model does not apply (see `pooled.fit`). Fitted once per board.
    """
    key = (student, tuple(columns))
    if key not in board.models:
        signed = [
            {row: {k: c.sign * v for k, v in values.items()} for row, values in by_row.items()}
            for c in columns
            for by_row in [comparable(board, student, c)]
        ]
        # A submission must not change the intervals of the rows that this suite ran.
        rows = [row for row in signed[0] if all(row in by_row for by_row in signed)]
        rows = [row for row in rows if not board.submitted(row)]
        if len(columns) > 1:
            rows = [row for row in rows if all(board.result(row, c).complete for c in columns)]
        weights = task_weights(columns)
        means = {row: st.mean_over([by_row[row] for by_row in signed], weights) for row in rows}
        board.models[key] = pooled.fit(means)
    return board.models[key]


def estimate(
    board: Board, row: RowKey, reference: RowKey, columns: Sequence[Column]
) -> tuple[st.Estimate | None, dict[st.Key, float]]:
    """(row - reference as a mean over `columns`, its paired differences by seed pair).

    The mean is weighted by `task_weights`. It comes from the pooled model of all rows
    (kdep_bench/results/statistics/pooled.py) if that contains both rows and they have two common
    seed pairs, otherwise from their paired differences alone; None without a common seed pair.
    """
    paired = st.mean_over([gaps(board, row, reference, c) for c in columns], task_weights(columns))
    fitted = model(board, row.student, columns) if len(paired) > 1 else None
    if fitted is not None and row in fitted and reference in fitted:
        return fitted.difference(row, reference), paired
    return (st.estimate(paired) if paired else None), paired


def difference(board: Board, row: RowKey, reference: RowKey, column: Column) -> Difference:
    """The difference of two rows on one task."""
    est, paired = estimate(board, row, reference, [column])
    return Difference(row, reference, column, 1, len(paired), est)


def mean_difference(
    board: Board, row: RowKey, reference: RowKey, columns: list[Column]
) -> Difference | None:
    """The mean difference over `columns`; None unless both rows are complete in all of them."""
    both = (row, reference)
    if not columns or any(not board.result(r, c).complete for r in both for c in columns):
        return None
    est, paired = estimate(board, row, reference, columns)
    return Difference(row, reference, None, len(columns), len(paired), est)


def difference_table(board: Board, student: str) -> list[Difference]:
    """Every difference in a student's table, per task and for the mean over tasks.

    Holm's correction (1979) is made separately for four groups: comparisons of kdep and of all
    other methods, each for means over tasks and for single tasks. The comparisons that a suite is
    run for thus do not depend on how many other methods are in its folder.
    """
    columns, table = columns_of(board, student), []
    for row, reference in compared(board, student):
        table += [difference(board, row, reference, c) for c in columns]
        mean = mean_difference(board, row, reference, columns) if len(columns) > 1 else None
        table += [mean] if mean else []
    groups: dict[tuple[bool, bool], dict[int, float]] = {}
    for i, d in enumerate(table):
        if d.p is not None:
            groups.setdefault((d.column is None, d.row.method == BASE), {})[i] = d.p
    adjusted = {i: p for group in groups.values() for i, p in pooled.holm(group).items()}
    return [replace(d, adjusted=adjusted.get(i)) for i, d in enumerate(table)]


def compared(board: Board, student: str) -> list[tuple[RowKey, RowKey]]:
    """(row, reference) of every comparison in the difference table.

    kdep is compared with each of `REFERENCE_METHODS`, any other method also with kdep.
    """
    pairs = []
    for row in board.rows_of(student):
        if row.method in REFERENCE_METHODS:
            continue
        for method in REFERENCE_METHODS if row.method == BASE else (BASE, *REFERENCE_METHODS):
            reference = board.counterpart(row, method)
            if reference is not None:
                pairs.append((row, reference))
    return pairs


def comparable(board: Board, student: str, column: Column) -> Mapping[RowKey, st.Values]:
    """Row -> its scores in a column by (pre-training seed, transfer seed).

    Published weights have one pre-training seed: their scores are repeated for every pre-training
    seed of the other rows, so that they pair with all of them.
    """
    results = {a: v for a in board.rows_of(student) if (v := board.values(a, column))}
    seeds = {k[0] for v in results.values() for k in v}
    for row, values in results.items():
        if len({k[0] for k in values}) == 1 < len(seeds) and board.fixed(row):
            results[row] = {(p, t): v for p in sorted(seeds) for (_, t), v in values.items()}
    return results


def best(board: Board, student: str, column: Column) -> set[RowKey]:
    """The rows marked in a column: the best mean, and every tested row not significantly worse.

    Empty where no row has two seeds. A row with one seed, or with fewer than two seed pairs in
    common with the best, is not tested and not marked.
    """
    values = {row: v for row, v in comparable(board, student, column).items() if len(v) > 1}
    if not values:
        return set()
    fitted = model(board, student, [column])
    candidates = set(fitted.names) if fitted else set(values)
    outside = {row: v for row, v in values.items() if row not in candidates}
    marked = fitted.best() if fitted else comparisons.best_set(values, column.sign)
    if outside:  # rows outside the model are compared with its best by their own differences
        marked |= comparisons.best_set(outside | {row: values[row] for row in marked}, column.sign)
    top = max(marked, key=lambda row: (column.sign * st.estimate(values[row]).mean, repr(row)))
    return {r for r in marked if r == top or len(st.differences(values[r], values[top])) > 1}


def below(board: Board, row: RowKey, column: Column) -> bool:
    """Whether the row's mean is worse than chance or than no pre-training."""
    result = board.result(row, column).estimate
    if result is None:
        return False
    floors = [board.chance[column]]
    scratch = board.counterpart(row, "scratch")
    if scratch is not None and (estimated := board.result(scratch, column).estimate):
        floors.append(estimated.mean)
    return any(f is not None and column.sign * (result.mean - f) < 0 for f in floors)


def complete_rows(board: Board, student: str) -> list[RowKey]:
    """Rows with a result in every column of the student, no seed failed or missing."""
    columns = columns_of(board, student)
    return [a for a in board.rows_of(student) if all(board.result(a, c).complete for c in columns)]


def columns_of(board: Board, student: str) -> list[Column]:
    """Columns in which the student has any result."""
    rows = board.rows_of(student)
    return [c for c in board.columns if any((a, c) in board.results for a in rows)]


def mean_ranks(board: Board, student: str) -> dict[RowKey, float]:
    """Row -> mean rank over the student's columns (1 = best), among complete rows."""
    columns = columns_of(board, student)
    table = {}
    for row in complete_rows(board, student):
        means = [board.result(row, c).estimate for c in columns]
        table[row] = [e.mean for e in means if e is not None]
    return comparisons.mean_ranks(table, [c.sign for c in columns])


def ranks(board: Board, student: str, column: Column) -> dict[RowKey, tuple[int, int]]:
    """Row -> (best, worst) rank it may have on a task, at 95 % for all rows together."""
    values = comparable(board, student, column)
    fitted = model(board, student, [column])
    if fitted is None:
        return comparisons.rank_intervals(values, column.sign)
    outside = [row for row in values if row not in fitted]  # one seed: any rank is possible
    inside = {row: (low, high + len(outside)) for row, (low, high) in fitted.ranks().items()}
    return inside | {row: (1, len(values)) for row in outside}


def noise(board: Board, student: str, column: Column) -> power.Noise | None:
    """Noise floor of a task for a student; None where no row has two seeds."""
    floor = power.noise_floor([board.values(row, column) for row in board.rows_of(student)])
    fitted = model(board, student, [column])
    if floor is None or fitted is None:
        return floor
    gap = power.smallest_gap((2 * fitted.variance) ** 0.5, floor.n, df=fitted.df)
    return replace(floor, detectable_difference=gap)

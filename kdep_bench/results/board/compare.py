"""Comparisons of a board's rows: paired differences, the best rows, ranks, and seed variation."""

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
    """The score of `row` minus that of `reference`; positive if `row` is better.

    Attributes:
        column: the task; None for the mean over several tasks.
        tasks: number of tasks.
        pairs: number of common seed pairs.
        estimate: the mean difference, a fraction, with its interval; None without a seed pair.
        adjusted: p after Holm's correction (see `difference_table`); None before it.
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
        """Two-sided p value of no difference, not corrected; None without an interval."""
        if self.estimate is None or self.estimate.low is None:
            return None
        return st.p_two_sided(self.estimate)

    @property
    def significant(self) -> bool:
        """Whether the p value (the corrected one if there is one) is below 0.05."""
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
    """The weight of each task in a mean over tasks; the weights sum to 1.

    Every task family has the same weight, and so have the tasks within a family. With equal weights
    of all tasks, three classification tasks of five would dominate the mean.
    """
    families = [c.family for c in columns]
    return [1 / (len(set(families)) * families.count(f)) for f in families]


def mean_name(columns: Sequence[Column]) -> str:
    """The name of a mean over tasks: "mean of 5 tasks (3 task families, equal weights)"."""
    families = len({c.family for c in columns})
    weighting = f" ({families} task families, equal weights)" if families > 1 else ""
    tasks = f"{len(columns)} task{'s' if len(columns) != 1 else ''}"
    return f"mean of {tasks}{weighting}"


def gaps(board: Board, row: RowKey, reference: RowKey, column: Column) -> dict[st.Key, float]:
    """Seed pair -> score of `row` minus score of `reference`; positive if `row` is better.

    The scores of published weights, which have one pre-training seed, are subtracted for every
    pre-training seed of the other row.
    """
    scores, reference_scores = board.values(row, column), board.values(reference, column)
    paired = st.differences(scores, reference_scores, fixed_b=board.lacks_pretraining(reference))
    if not paired and board.lacks_pretraining(row):
        paired = {k: -v for k, v in st.differences(reference_scores, scores, fixed_b=True).items()}
    return {k: column.sign * v for k, v in paired.items()}


def model(board: Board, student: str, columns: Sequence[Column]) -> pooled.Pooled | None:
    """The linear model of the scores of a student's rows, with a common variance.

    Its scores are those of one task, or means over several tasks. Scores for which smaller is
    better enter the model with a minus sign. Submitted rows are left out, and the model of a mean
    over tasks contains only complete rows. Each model is fitted once per board.

    Returns:
        None if the model does not apply (see `pooled.fit`).
    """
    key = (student, tuple(columns))
    if key not in board.models:
        signed = []  # for each column: row -> its scores, larger is better
        for c in columns:
            scores = scores_by_row(board, student, c)
            signed.append(
                {row: {k: c.sign * v for k, v in values.items()} for row, values in scores.items()}
            )
        # Submitted records must not change the intervals of this suite's own rows.
        rows = [row for row in signed[0] if all(row in by_row for by_row in signed)]
        rows = [row for row in rows if not board.is_submitted(row)]
        if len(columns) > 1:
            rows = [row for row in rows if all(board.result(row, c).is_complete for c in columns)]
        weights = task_weights(columns)
        means = {row: st.mean_over([by_row[row] for by_row in signed], weights) for row in rows}
        board.models[key] = pooled.fit(means)
    return board.models[key]


def estimate(
    board: Board, row: RowKey, reference: RowKey, columns: Sequence[Column]
) -> tuple[st.Estimate | None, dict[st.Key, float]]:
    """The mean difference of two rows over `columns`, weighted by `task_weights`.

    Returns:
        (estimate, paired differences by seed pair). The estimate is from the pooled model of all
        rows (kdep_bench/results/statistics/pooled.py) if the model contains both rows and they have
        two or more common seed pairs. Otherwise it is from their paired differences alone. It is
        None without a common seed pair.
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
    """The mean difference over `columns`; None if a row has an incomplete result in one of them."""
    results = [board.result(r, c) for r in (row, reference) for c in columns]
    if not columns or not all(result.is_complete for result in results):
        return None
    est, paired = estimate(board, row, reference, columns)
    return Difference(row, reference, None, len(columns), len(paired), est)


def difference_table(board: Board, student: str) -> list[Difference]:
    """All differences of a student, per task and for the mean over tasks.

    Holm's correction (1979) is made separately for four groups: comparisons whose first method is
    kdep and those whose first method is another one, each for means over tasks and for single
    tasks. So the corrected p values of kdep do not depend on the number of other methods in the
    results folder.
    """
    columns, table = columns_of(board, student), []
    for row, reference in compared_pairs(board, student):
        table += [difference(board, row, reference, c) for c in columns]
        mean = mean_difference(board, row, reference, columns) if len(columns) > 1 else None
        table += [mean] if mean else []
    groups: dict[tuple[bool, bool], dict[int, float]] = {}
    for i, d in enumerate(table):
        if d.p is not None:
            groups.setdefault((d.column is None, d.row.method == BASE), {})[i] = d.p
    adjusted = {i: p for group in groups.values() for i, p in pooled.holm(group).items()}
    return [replace(d, adjusted=adjusted.get(i)) for i, d in enumerate(table)]


def compared_pairs(board: Board, student: str) -> list[tuple[RowKey, RowKey]]:
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


def scores_by_row(board: Board, student: str, column: Column) -> Mapping[RowKey, st.Values]:
    """Row -> its scores in a column by (pre-training seed, transfer seed).

    Published weights have one pre-training seed. Their scores are repeated for every pre-training
    seed of the other rows, so that they have seed pairs in common with all rows.
    """
    scores = {row: v for row in board.rows_of(student) if (v := board.values(row, column))}
    pretrain_seeds = {pretrain for values in scores.values() for pretrain, _ in values}
    for row, values in scores.items():
        has_one_seed = len({pretrain for pretrain, _ in values}) == 1
        if has_one_seed and len(pretrain_seeds) > 1 and board.lacks_pretraining(row):
            scores[row] = {
                (pretrain, transfer): value
                for pretrain in sorted(pretrain_seeds)
                for (_, transfer), value in values.items()
            }
    return scores


def best(board: Board, student: str, column: Column) -> set[RowKey]:
    """The rows among the best in a column: the best mean, and every row not significantly worse.

    It is empty if no row has two seeds. A row with one seed, or with fewer than two seed pairs in
    common with the best row, cannot be tested and is left out.
    """
    values = {row: v for row, v in scores_by_row(board, student, column).items() if len(v) > 1}
    if not values:
        return set()
    fitted = model(board, student, [column])
    in_model = set(fitted.names) if fitted else set(values)
    not_in_model = {row: v for row, v in values.items() if row not in in_model}
    marked = fitted.best() if fitted else comparisons.best_set(values, column.sign)
    if not_in_model:  # compare these rows with the model's best rows by their own differences
        candidates = not_in_model | {row: values[row] for row in marked}
        marked |= comparisons.best_set(candidates, column.sign)
    top = max(marked, key=lambda row: (column.sign * st.estimate(values[row]).mean, repr(row)))
    return {r for r in marked if r == top or len(st.differences(values[r], values[top])) > 1}


def is_below_chance_or_scratch(board: Board, row: RowKey, column: Column) -> bool:
    """Whether the row's mean is worse than chance or than the mean of scratch."""
    result = board.result(row, column).estimate
    if result is None:
        return False
    thresholds = [board.chance[column]]
    scratch = board.counterpart(row, "scratch")
    if scratch is not None and (scratch_estimate := board.result(scratch, column).estimate):
        thresholds.append(scratch_estimate.mean)
    return any(t is not None and column.sign * (result.mean - t) < 0 for t in thresholds)


def complete_rows(board: Board, student: str) -> list[RowKey]:
    """Rows with a complete result in every column of the student."""
    columns = columns_of(board, student)
    return [
        row
        for row in board.rows_of(student)
        if all(board.result(row, column).is_complete for column in columns)
    ]


def columns_of(board: Board, student: str) -> list[Column]:
    """Columns in which the student has a result."""
    rows = board.rows_of(student)
    return [c for c in board.columns if any((row, c) in board.results for row in rows)]


def mean_ranks(board: Board, student: str) -> dict[RowKey, float]:
    """Row -> mean rank over the student's columns (1 = best), among complete rows."""
    columns = columns_of(board, student)
    table = {}
    for row in complete_rows(board, student):
        means = [board.result(row, c).estimate for c in columns]
        table[row] = [e.mean for e in means if e is not None]
    return comparisons.mean_ranks(table, [c.sign for c in columns])


def ranks(board: Board, student: str, column: Column) -> dict[RowKey, tuple[int, int]]:
    """Row -> (best, worst) rank that it may have on a task, with 95 % confidence for all rows."""
    values = scores_by_row(board, student, column)
    fitted = model(board, student, [column])
    if fitted is None:
        return comparisons.rank_intervals(values, column.sign)
    # A row that is not in the model, such as one with a single seed, may have any rank.
    not_in_model = [row for row in values if row not in fitted]
    ranks_in_model = {
        row: (low, high + len(not_in_model)) for row, (low, high) in fitted.ranks().items()
    }
    return ranks_in_model | {row: (1, len(values)) for row in not_in_model}


def noise(board: Board, student: str, column: Column) -> power.Noise | None:
    """Variation between seeds of a task for a student, without submitted rows.

    It is None if no row has two seeds.
    """
    own_rows = [row for row in board.rows_of(student) if not board.is_submitted(row)]
    seed_noise = power.noise_floor([board.values(row, column) for row in own_rows])
    fitted = model(board, student, [column])
    if seed_noise is None or fitted is None:
        return seed_noise
    difference_sd = (2 * fitted.variance) ** 0.5
    smallest = power.smallest_gap(difference_sd, seed_noise.n, df=fitted.df)
    return replace(seed_noise, detectable_difference=smallest)

"""First lines of a leaderboard: the project's question answered in sentences.

Is pre-training from the teacher better than no pre-training and supervised pre-training, at which
fraction of the data and time, and how many networks were measured? The sentences repeat rows of the
difference table with their corrected verdicts and compute no further statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, RowKey
from kdep_bench.results.board.compare import Difference
from kdep_bench.results.board.row_summary import RowSummary

REFERENCES = {
    "scratch": "no pre-training",
    "supervised": "supervised pre-training",
    "imagenet": "published ImageNet weights",
}
MOST_ROWS = 4  # rows of KDEP with sentences; more are in the table
MOST_NAMES = 6


def sentences(
    board: Board, student: str, labels: Mapping[RowKey, str], summaries: Mapping[RowKey, RowSummary]
) -> list[str]:
    """The sentences about `student`; empty without a score.

    Args:
        labels: row -> its name in the tables.
        summaries: row -> its costs and budget.
    """
    scored = {row for (row, _), result in board.results.items() if result.estimate}
    if not any(row.student == student for row in scored):
        return []
    table = compare.difference_table(board, student)
    rows = list(dict.fromkeys(d.row for d in table if d.row.method == compare.BASE))
    lines = []
    for row in rows[:MOST_ROWS]:
        for name in REFERENCES:
            pair = [d for d in table if d.row == row and d.reference.method == name]
            lines += [_comparison(board, pair, labels)] if pair else []
        lines += _spent(board, row, labels, summaries)
    if len(rows) > MOST_ROWS:
        lines.append(
            f"{len(rows) - MOST_ROWS} more rows of {compare.BASE} are in the tables below."
        )
    if len(board.rows_of(student)) > len(rows) + len(REFERENCES):
        lines += _best(board, student, labels)
    return [*lines, _limits(board, student, table)]


def _comparison(board: Board, pair: Sequence[Difference], labels: Mapping[RowKey, str]) -> str:
    """One sentence on a row and a reference: over all tasks, then per task where they differ."""
    name, reference = labels[pair[0].row], REFERENCES[pair[0].reference.method]
    columns = compare.columns_of(board, pair[0].row.student)
    tasks = [d for d in pair if d.column is not None and d.estimate is not None]
    overall = next((d for d in pair if d.column is None or len(columns) == 1), None)
    if overall is None or overall.estimate is None:
        if not tasks:
            return f"{name} cannot be compared with {reference}: no common task and seeds."
        missing = f"has no mean over tasks to compare with {reference} (a score is missing)"
        return f"{name} {missing}: {_by_verdict(tasks)}."
    if overall.p is None:
        mean = text.points(overall.estimate.mean, True)
        return f"{name} - {reference}: {mean} points x100 with one seed pair, so not tested."
    phrase = {"better": "scores higher than", "worse": "scores lower than"}
    relation = phrase.get(overall.verdict, "is not significantly different from")
    where = overall.column.task if overall.column else compare.mean_name(columns)
    sentence = f"{name} {relation} {reference}: {text.gap(overall.estimate)} points x100, {where}"
    disagree = overall.column is None and len({d.verdict for d in tasks}) > 1
    return f"{sentence}; {_by_verdict(tasks)}." if disagree else f"{sentence}."


def _by_verdict(tasks: Sequence[Difference]) -> str:
    """ "higher on a, b; lower on c; not significant on d"."""
    shown = {"better": "higher", "worse": "lower"}
    groups: dict[str, list[str]] = {"higher": [], "lower": [], "not significant": []}
    for d in tasks:
        if d.column is not None:
            groups[shown.get(d.verdict, "not significant")].append(d.column.task)
    return "; ".join(f"{word} on {', '.join(names)}" for word, names in groups.items() if names)


def _spent(
    board: Board, row: RowKey, labels: Mapping[RowKey, str], summaries: Mapping[RowKey, RowSummary]
) -> list[str]:
    """Data and time of `row`, relative to the supervised row with the most data."""
    supervised = [a for a in board.rows_of(row.student) if a.method == "supervised"]
    reference = max(supervised, key=lambda a: (a.fraction, a.epochs or 0.0), default=None)
    if reference is None:
        return []
    seconds, reference_seconds = summaries[row].cost_s, summaries[reference].cost_s
    time = "its time is not stated" + (" (other work ran on the machine)" if board.untimed else "")
    if seconds is not None and reference_seconds:
        cache = ", teacher cache included" if summaries[row].cache_s else ""
        ratio = seconds / reference_seconds
        time = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"
        time = f"{time} times its pre-training time{cache}"
    labelled = "with labels" if summaries[row].method.labels_used else "without labels"
    fraction = f"{100 * row.fraction / reference.fraction:.3g} % of the images"
    return [f"{labels[row]} used {fraction} of {labels[reference]}, {labelled}, and {time}."]


def _best(board: Board, student: str, labels: Mapping[RowKey, str]) -> list[str]:
    lines = []
    for column in compare.columns_of(board, student):
        estimates = {
            row: e
            for row in compare.best(board, student, column)
            if (e := board.result(row, column).estimate)
        }
        if not estimates:
            continue
        ordered = sorted(estimates, key=lambda a: (-column.sign * estimates[a].mean, a.order()))
        names = [labels[row] for row in ordered]
        shown = ", ".join(names[:MOST_NAMES])
        if len(names) > MOST_NAMES:
            shown += f" and {len(names) - MOST_NAMES} more"
        note = " (in order of the mean; none significantly worse than the first)"
        note = note if len(names) > 1 else ""
        n_rows = len(board.rows_of(student))
        lines.append(f"Best of {n_rows} rows on {column.task}: {shown}{note}.")
    return lines


def _limits(board: Board, student: str, table: Sequence[Difference]) -> str:
    """The number of networks, runs and test sets behind the other sentences."""
    networks, runs = set(), set()
    for row in board.rows_of(student):
        for column in compare.columns_of(board, student):
            seeds = set(board.values(row, column))
            if seeds:
                runs.add(len(seeds))
            if seeds and not board.fixed(row):
                networks.add(len({pretrain for pretrain, _ in seeds}))
    counted = f"{_range(networks, 'pre-trained network')} and " if networks else ""
    test = "" if any(d.p is not None for d in table) else " No difference was tested."
    return (
        f"Measured with {counted}{_range(runs, 'transfer run')} per method and task, one student "
        f"and the test images of this suite; other data, budgets and students may give other "
        f"results.{test}"
    )


def _range(counts: set[int], noun: str) -> str:
    """ "3 transfer runs", "1 to 3 transfer runs"."""
    low, high = min(counts), max(counts)
    shown = f"{high}" if low == high else f"{low} to {high}"
    return f"{shown} {noun}{'s' if high > 1 else ''}"

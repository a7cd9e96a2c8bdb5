"""The sentences at the top of a leaderboard, which answer the question of the suite.

They state whether KDEP is better than no pre-training and than supervised pre-training, with what
fraction of the images and of the time, and from how many networks and runs. They repeat the
difference table with its corrected verdicts and compute no statistic of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdep_bench.errors import first_of
from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, RowKey
from kdep_bench.results.board.compare import Difference
from kdep_bench.results.board.row_summary import RowSummary
from kdep_bench.results.statistics.intervals import Estimate

REFERENCES = {
    "scratch": "no pre-training",
    "supervised": "supervised pre-training",
    "imagenet": "published ImageNet weights",
}
MAX_ROWS = 4  # rows of KDEP with sentences of their own; the others are only in the tables
MAX_NAMES = 6  # names in the list of the best rows of a task


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
    for row in rows[:MAX_ROWS]:
        for name in REFERENCES:
            differences = [d for d in table if d.row == row and d.reference.method == name]
            lines += [_comparison(board, differences, labels)] if differences else []
        lines += _data_and_time(board, row, labels, summaries)
    if len(rows) > MAX_ROWS:
        lines.append(f"{len(rows) - MAX_ROWS} more rows of {compare.BASE} are in the tables below.")
    if len(board.rows_of(student)) > len(rows) + len(REFERENCES):
        lines += _best(board, student, labels)
    return [*lines, _limits(board, student, table)]


def _comparison(
    board: Board, differences: Sequence[Difference], labels: Mapping[RowKey, str]
) -> str:
    """A text on a row and a reference: over all tasks, and by task if the verdicts differ.

    `differences`: the differences of the row from the reference, by task and over all tasks.
    """
    row = differences[0].row
    name, reference = labels[row], _reference_name(differences[0].reference, labels)
    columns = compare.columns_of(board, row.student)
    tasks = [d for d in differences if d.column is not None and d.estimate is not None]
    overall = next((d for d in differences if d.column is None or len(columns) == 1), None)
    if overall is None or overall.estimate is None:
        if not tasks:
            return f"{name} cannot be compared with {reference}: no common task and seeds."
        problem = f"a score is missing, so {name} and {reference} are not compared over all tasks"
        return f"{problem[0].upper()}{problem[1:]}. By task: {_by_verdict(tasks)}."
    if overall.p is None:
        mean = text.points(overall.estimate.mean, True)
        return f"{name} minus {reference}: {mean} points, from one seed pair and not tested."
    relations = {"better": "scores higher than", "worse": "scores lower than"}
    relation = relations.get(overall.verdict, "is not significantly different from")
    where = overall.column.task if overall.column else compare.mean_name(columns)
    sentence = f"{name} {relation} {reference}: {_points(overall.estimate)}, {where}."
    verdicts_differ = overall.column is None and len({d.verdict for d in tasks}) > 1
    return f"{sentence} By task: {_by_verdict(tasks)}." if verdicts_differ else sentence


def _reference_name(row: RowKey, labels: Mapping[RowKey, str]) -> str:
    """The reference in words; with the row's label if the method has several rows."""
    name = REFERENCES[row.method]
    return name if labels[row] == row.method else f"{name} ({labels[row]})"


def _points(estimate: Estimate) -> str:
    """A text such as "+5.8 points (95 % interval +4.9 to +6.6)", or "+5.8 points"."""
    mean = f"{text.points(estimate.mean, True)} points"
    if estimate.low is None or estimate.high is None:
        return mean
    low, high = text.points(estimate.low, True), text.points(estimate.high, True)
    return f"{mean} (95 % interval {low} to {high})"


def _by_verdict(tasks: Sequence[Difference]) -> str:
    """A text such as "higher on a, b; lower on c; not significantly different on d"."""
    phrases = {"better": "higher on", "worse": "lower on"}
    not_significant = "not significantly different on"
    groups: dict[str, list[str]] = {p: [] for p in (*phrases.values(), not_significant)}
    for d in tasks:
        if d.column is not None:
            groups[phrases.get(d.verdict, not_significant)].append(d.column.task)
    return "; ".join(f"{phrase} {', '.join(names)}" for phrase, names in groups.items() if names)


def _data_and_time(
    board: Board, row: RowKey, labels: Mapping[RowKey, str], summaries: Mapping[RowKey, RowSummary]
) -> list[str]:
    """A text on the data and time of `row`, relative to the supervised row with the most data.

    Of several such rows, it is the one with the epochs of `row`, or with the most epochs. It is a
    list with one text, or empty without a supervised row.
    """
    supervised = [a for a in board.rows_of(row.student) if a.method == "supervised"]
    reference = max(
        supervised,
        key=lambda a: (a.fraction, a.epochs == row.epochs, a.epochs or 0.0),
        default=None,
    )
    if reference is None:
        return []
    seconds, reference_seconds = summaries[row].cost_s, summaries[reference].cost_s
    time = "The pre-training time is unknown."
    if board.has_no_times:
        time = "The time was not measured, because other work ran on the machine."
    if seconds is not None and reference_seconds:
        cache = ", including the teacher cache" if summaries[row].cache_s else ""
        ratio = seconds / reference_seconds
        factor = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"
        time = f"Pre-training took {factor} times as long{cache}."
    labelled = "with labels" if summaries[row].method.labels_used else "without labels"
    images = f"as many images as {labels[reference]}"
    if row.fraction != reference.fraction:
        images = f"{_multiple(row.fraction / reference.fraction)} as many images as "
        images += labels[reference]
    return [f"{labels[row]} was pre-trained {labelled} on {images}. {time}"]


def _multiple(ratio: float) -> str:
    """A ratio in words, such as "one tenth", "10 times" or "30 %"."""
    if ratio >= 1:
        return f"{ratio:.3g} times"
    words = {0.5: "half", 0.1: "one tenth", 0.01: "one hundredth"}
    return words.get(round(ratio, 6), f"{100 * ratio:.3g} %")


def _best(board: Board, student: str, labels: Mapping[RowKey, str]) -> list[str]:
    """One sentence per task on its best rows."""
    lines = []
    for column in compare.columns_of(board, student):
        estimates = {
            row: e
            for row in compare.best(board, student, column)
            if (e := board.result(row, column).estimate)
        }
        if not estimates:
            continue
        ordered = sorted(
            estimates, key=lambda row: (-column.sign * estimates[row].mean, row.order())
        )
        names = [labels[row] for row in ordered]
        n_rows = len(board.rows_of(student))
        # This does not state that no difference is significant: the differences of single pairs
        # are corrected for other numbers of comparisons.
        if len(names) == n_rows:
            lines.append(f"All {n_rows} rows are among the best on {column.task}.")
            continue
        # The name of a transfer method contains a comma.
        shown = first_of(names, MAX_NAMES, "; " if any(", " in n for n in names) else ", ")
        note = " (sorted by mean; none is significantly worse than the first)"
        note = note if len(names) > 1 else ""
        lines.append(f"Best of {n_rows} rows on {column.task}: {shown}{note}.")
    return lines


def _limits(board: Board, student: str, table: Sequence[Difference]) -> str:
    """The number of networks and runs behind the other sentences."""
    networks, runs = set(), set()
    for row in board.rows_of(student):
        for column in compare.columns_of(board, student):
            seeds = set(board.values(row, column))
            if seeds:
                runs.add(len(seeds))
            if seeds and not board.lacks_pretraining(row):
                networks.add(len({pretrain for pretrain, _ in seeds}))
    n_networks = f"{_range(networks, 'pre-trained network')} per method and " if networks else ""
    is_tested = any(d.p is not None for d in table)
    note = "" if is_tested else " No difference was tested for significance."
    return (
        f"These results are from {n_networks}{_range(runs, 'transfer run')} per method and task, "
        f"with one student. Other students, data or training budgets may give other results.{note}"
    )


def _range(counts: set[int], noun: str) -> str:
    """A text such as "3 transfer runs" or "1 to 3 transfer runs"."""
    low, high = min(counts), max(counts)
    shown = f"{high}" if low == high else f"{low} to {high}"
    return f"{shown} {noun}{'s' if high > 1 else ''}"

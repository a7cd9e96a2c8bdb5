"""The first lines of a leaderboard: the project's question answered in sentences.

Does pre-training from the teacher beat no pre-training and supervised pre-training, at what share
of the data and time, and on how many networks does that rest? The sentences repeat the rows of the
difference table and its corrected verdicts; they compute nothing of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdep_bench.results import compare, text
from kdep_bench.results.compare import Difference
from kdep_bench.results.table import ArmFacts, ArmKey, Board

REFERENCES = {
    "scratch": "no pre-training",
    "supervised": "supervised pre-training",
    "imagenet": "published ImageNet weights",
}
MOST_ROWS = 4  # rows of KDEP that are answered for; more are in the table
MOST_NAMES = 6


def sentences(
    board: Board, student: str, labels: Mapping[ArmKey, str], summaries: Mapping[ArmKey, ArmFacts]
) -> list[str]:
    """What the records of `student` answer; empty where there is no score."""
    scored = {row for (row, _), result in board.cells.items() if result.estimate}
    if not any(row.student == student for row in scored):
        return []
    table = compare.difference_table(board, student)
    rows = list(dict.fromkeys(d.arm for d in table if d.arm.method == compare.BASE))
    lines = []
    for row in rows[:MOST_ROWS]:
        differences = [d for d in _headlines(table, row) if d.estimate]
        lines += [_comparison(board, d, table, labels) for d in differences]
        lines += _spent(board, row, labels, summaries)
    if len(board.arms_of(student)) > len(rows) + len(REFERENCES):
        lines += _best(board, student, labels)
    return [*lines, _limits(board, student)]


def _headlines(table: Sequence[Difference], row: ArmKey) -> list[Difference]:
    """The widest difference of `row` to each reference: over all tasks, or on its only task."""
    widest: dict[ArmKey, Difference] = {}
    for d in table:
        known = widest.get(d.other)
        if d.arm == row and d.other.method in REFERENCES and (not known or d.tasks > known.tasks):
            widest[d.other] = d
    order = list(REFERENCES)
    return sorted(widest.values(), key=lambda d: order.index(d.other.method))


def _comparison(
    board: Board, d: Difference, table: Sequence[Difference], labels: Mapping[ArmKey, str]
) -> str:
    reference = REFERENCES[d.other.method]
    phrase = {
        "better": f"scores higher than {reference}",
        "worse": f"scores lower than {reference}",
        "too few seed pairs": f"cannot be compared with {reference}: too few seeds",
    }.get(d.verdict, f"is not significantly different from {reference}")
    where = "" if d.column is None else f" on {d.column.task}"
    if d.column is None:
        where = f", {compare.mean_name(compare.columns_of(board, d.arm.student))}"
    gap = f": {text.gap(d.estimate)} points x100{where}" if d.p is not None else where
    return f"{labels[d.arm]} {phrase}{gap}{_by_task(d, table)}."


def _by_task(d: Difference, table: Sequence[Difference]) -> str:
    """Where the tasks do not agree: which are better and which worse."""
    single = [x for x in table if (x.arm, x.other) == (d.arm, d.other) and x.column is not None]
    if d.column is not None or len({x.verdict for x in single}) < 2:
        return ""
    parts = []
    for verdict, shown in (("better", "higher"), ("worse", "lower")):
        tasks = [x.column.task for x in single if x.column and x.verdict == verdict]
        if tasks:
            parts.append(f"{shown} on {', '.join(tasks)}")
    undecided = sum(x.verdict not in ("better", "worse") for x in single)
    if undecided:
        parts.append(f"not significant on {undecided} of {len(single)} tasks")
    return f"; {'; '.join(parts)}"


def _spent(
    board: Board, row: ArmKey, labels: Mapping[ArmKey, str], summaries: Mapping[ArmKey, ArmFacts]
) -> list[str]:
    """Fraction of the data and the time of the supervised row with most data in this suite."""
    supervised = [a for a in board.arms_of(row.student) if a.method == "supervised"]
    reference = max(supervised, key=lambda a: (a.share, a.epochs or 0.0), default=None)
    if reference is None:
        return []
    seconds, reference_seconds = summaries[row].cost_s, summaries[reference].cost_s
    time = "its time is not stated (other work ran on the machine)"
    if seconds is not None and reference_seconds:
        cache = ", teacher cache included" if summaries[row].cache_s else ""
        time = f"{seconds / reference_seconds:.2g} times its time{cache}"
    labelled = "with labels" if summaries[row].arm.labels_used else "without labels"
    fraction = f"{100 * row.share / reference.share:g} % of the images"
    return [f"{labels[row]} used {fraction} of {labels[reference]}, {labelled}, and {time}."]


def _best(board: Board, student: str, labels: Mapping[ArmKey, str]) -> list[str]:
    lines = []
    for column in compare.columns_of(board, student):
        estimates = {
            row: e
            for row in compare.best(board, student, column)
            if (e := board.cell(row, column).estimate)
        }
        if not estimates:
            continue
        ordered = sorted(estimates, key=lambda a: (-column.sign * estimates[a].mean, a.order()))
        names = [labels[row] for row in ordered]
        shown = ", ".join(names[:MOST_NAMES])
        if len(names) > MOST_NAMES:
            shown += f" and {len(names) - MOST_NAMES} more"
        note = " (none significantly worse than the first)" if len(names) > 1 else ""
        n_rows = len(board.arms_of(student))
        lines.append(f"Best on {column.task}, of {n_rows} methods: {shown}{note}.")
    return lines


def _limits(board: Board, student: str) -> str:
    """How many networks, runs and test sets the sentences before rest on."""
    networks, runs = [], []
    for row in board.arms_of(student):
        columns = [column for scored, column in board.cells if scored == row]
        seeds = {pair for column in columns for pair in board.values(row, column)}
        runs.append(len(seeds))
        if not board.fixed(row):
            networks.append(len({pretrain for pretrain, _ in seeds}))
    n_networks = min((n for n in networks if n), default=0)
    n_runs = min((n for n in runs if n), default=0)
    counted = f"{n_networks} pre-trained network{'s' if n_networks > 1 else ''} and "
    trials = f"{n_runs} transfer run{'s' if n_runs > 1 else ''}"
    test = " With one run no difference can be tested." if n_runs == 1 else ""
    return (
        f"This rests on {counted if n_networks else ''}{trials} per method and task, one student "
        f"and the test images of this suite; it does not cover other data, budgets or "
        f"students.{test}"
    )

"""The rows of the report's tables, as texts and numbers for every output format."""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdep_bench.results import text
from kdep_bench.results.board import compare, efficiency, families
from kdep_bench.results.board.ablation import Grid
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.image_pairs import ImagePair
from kdep_bench.results.board.over_images import ImageDifference
from kdep_bench.results.board.row_summary import RowSummary, row_labels, summarize_row
from kdep_bench.results.claims.verdict import Verdict
from kdep_bench.results.records.store import Run
from kdep_bench.results.report import answer, data_card, data_notes, row_colours
from kdep_bench.results.report.probe_tables import ProbeSection

BELOW_CHANCE_MARK = " †"  # follows a score below chance or below no pre-training

MEAN_RANK = (
    "Sorted by mean rank: the rank of the method's mean score (1 is best), averaged over all "
    "tasks. Only methods with results for every task and seed have one.",
    "Among the best: number of tasks on which the method is among the best.",
)


def paired_notes(view: BoardView) -> list[str]:
    """The explanations of the table of paired differences."""
    places = view.board.results.values()
    noisy = "a method whose variance is significantly larger than that of the others is compared "
    noisy += "by its own differences and not pooled"
    if not all(result.is_complete for result in places):
        noisy = f"on a task without missing scores, {noisy}"
    has_families = len(view.board.families) > 1
    return [
        "Comparison a - b: a's score minus b's score with the same pre-training and transfer seed, "
        "averaged over these seed pairs. If it is positive, a is better, for every metric.",
        "Intervals and p are those of a t test. Its standard deviation is pooled over all methods "
        "of the task, with two exceptions: if the standard deviation of the pair's own differences "
        f"is larger, it is used instead; and {noisy}.",
        "A mean over tasks gives every task family the same weight." if has_families else "",
        "Result: better or worse if p (Holm) is below 0.05. Holm's correction is made separately "
        "for four groups: (first method is kdep, or another) x (single task, or mean over tasks). "
        "Intervals are not corrected, so an interval may exclude 0 although the result is not "
        "significant.",
        "Bold scores and claims are corrected for other numbers of comparisons, so they may differ "
        "from this table."
        + " If a claim differs, its verdict counts, because the claim was written before the run."
        * bool(view.verdicts),
    ]


LONG = 60  # most rows of a difference table that is not split

UNTIMED = (
    "Times are not reported, because other work ran on the same machine (runtime.timed=False in "
    "the suite)."
)

REDUCTION_NOTES = (
    "Reduction factor: the budget of the reference divided by the budget with which the method "
    "reaches the reference's score (mean over all tasks, each task family with the same weight).",
    "It is read off the method's curve of score against budget, for each seed pair: the highest "
    "score up to each budget, interpolated linearly in the logarithm of the budget.",
    "'at least': for one or more seed pairs, the smallest budget already reaches the score. 'at "
    "most': for one or more, the largest budget does not reach it. 'mixed bounds': both. The "
    "interval is that of the mean in which these pairs have their bounds. If all seed pairs have "
    "the same bound, there is no interval.",
)


class DifferenceRow(NamedTuple):
    """A row of the difference table; `comparison`: "a - b"; `task`: name of a task or a mean."""

    student: str
    comparison: str
    task: str
    difference: compare.Difference


@dataclass(slots=True)
class BoardView:
    """A board with the values that all output formats need, each computed once.

    In kdep_bench/results/report the name `view` means this class, not a view of an image.

    Attributes:
        labels: row -> its name in the tables.
        summaries: row -> its costs, budget and alignment.
        bold: (student, task) -> rows among the best.
        verdicts: the verdicts on the claims.
        method_inputs: as in `report.build`.
        letters: note on the data -> its letter.
        probes: the tables of probes.
        image_differences: differences with intervals over seeds and test images.
        image_pairs: the images on which two rows differ most.
        image_left_out: reason -> number of comparisons that are not in `image_differences`.
        differences: student -> its rows of `difference_rows`, once they are computed.
        colour_keys: method or method family -> colour class.
        grid: the factors of an ablation; None for another suite.
        question: the question of the suite, the first line of its config; "" if unknown.
    """

    board: Board
    labels: dict[RowKey, str]
    summaries: dict[RowKey, RowSummary]
    bold: dict[tuple[str, Column], set[RowKey]]
    verdicts: list[Verdict]
    method_inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    letters: dict[str, str] = field(default_factory=dict)
    probes: ProbeSection = field(default_factory=ProbeSection)
    grid: Grid | None = None
    question: str = ""
    image_differences: list[ImageDifference] = field(default_factory=list)
    image_pairs: list[ImagePair] = field(default_factory=list)
    image_left_out: Counter[str] = field(default_factory=Counter)
    differences: dict[str, list[DifferenceRow]] = field(default_factory=dict)
    colour_keys: dict[str, int] = field(default_factory=dict)

    def colour_key(self, row: RowKey) -> str:
        """The method or method family whose colour the row has."""
        return row_colours.key_of(row, self.summaries)

    def colour(self, row: RowKey) -> int:
        """Colour class of the row."""
        return self.colour_keys[self.colour_key(row)]

    def mark(self, row: RowKey, column: Column) -> str:
        """Letters of the notes on the data of this result, such as "a, c"; "" without a note."""
        return data_notes.mark(self.board, self.letters, row, column)

    @property
    def has_one_student(self) -> bool:
        """Whether all rows have the same student."""
        return len(self.board.students) == 1

    @property
    def has_comparisons(self) -> bool:
        """Whether a student has several rows."""
        return any(len(self.board.rows_of(student)) > 1 for student in self.board.students)

    def is_bold(self, row: RowKey, column: Column) -> bool:
        """Whether this result is among the best of several rows of its student."""
        has_several = len(self.board.rows_of(row.student)) > 1
        return has_several and row in self.bold.get((row.student, column), set())

    def count_best(self, row: RowKey, columns: Sequence[Column]) -> tuple[int, int]:
        """(number of `columns` in which the row is among the best, number in which any row is)."""
        has_several = len(self.board.rows_of(row.student)) > 1
        marked = [c for c in columns if has_several and self.bold.get((row.student, c))]
        return sum(self.is_bold(row, c) for c in marked), len(marked)

    def rows(self, columns: Sequence[Column]) -> list[RowKey]:
        """Rows with a result in one or more of `columns`."""
        results = self.board.results
        return [row for row in self.board.rows if any((row, c) in results for c in columns)]


def make_view(
    board: Board,
    verdicts: list[Verdict] | None = None,
    method_inputs: Mapping[str, Mapping[str, Any]] | None = None,
) -> BoardView:
    """Computes the view of `board`; `method_inputs` as in `report.build`."""
    bold = {
        (student, column): compare.best(board, student, column)
        for student in board.students
        for column in compare.columns_of(board, student)
    }
    summaries = {row: summarize_row(board, row) for row in board.rows}
    letters = data_notes.letters(board)
    return BoardView(
        board,
        row_labels(board),
        summaries,
        bold,
        verdicts or [],
        method_inputs or {},
        letters,
        colour_keys=row_colours.by_key(summaries),
    )


def rows_by_rank(view: BoardView, student: str) -> list[RowKey]:
    """The rows of a student by mean rank; rows without a mean rank last."""
    ranks = compare.mean_ranks(view.board, student)
    rows = view.board.rows_of(student)
    return sorted(rows, key=lambda row: (ranks.get(row, math.inf), row.order()))


def column_names(columns: Sequence[Column]) -> dict[Column, str]:
    """Column -> its heading: task and metric, with version or data if a task has several."""
    versions: dict[str, set[int]] = {c.task: set() for c in columns}
    fingerprints: dict[str, set[str]] = {c.task: set() for c in columns}
    for c in columns:
        versions[c.task].add(c.version)
        fingerprints[c.task].add(c.fingerprint)
    names = {}
    for c in columns:
        extra = f" v{c.version}" if len(versions[c.task]) > 1 else ""
        if len(fingerprints[c.task]) > 1:
            extra += f" data {c.fingerprint[:8] or 'unknown'}"
        direction = ", smaller is better" if c.sign < 0 else ""
        names[c] = f"{c.task}{extra} ({c.metric}{direction})"
    return names


def labels_text(summary: RowSummary) -> str:
    """Whether the pre-training used labels, as text for tables."""
    method, transfer = summary.method, summary.transfer
    if method.label_policy == "none":
        shown = "no pre-training"
    elif method.labels_used:
        shown = "yes"
    else:
        shown = "by its teacher" if method.label_policy == "labels" else "no"
    if transfer is not None and transfer.teacher_labels_used:
        shown += "; by its teacher at transfer"
    return shown


def fraction_text(view: BoardView, row: RowKey) -> str:
    """The data fraction of the pre-training; a dash if the suite did not pre-train the row."""
    # Published weights (imagenet) have no number of images seen. A failed run has none either, but
    # its fraction is known.
    has_result = any(run.status == "ok" for run in view.board.runs_of(row))
    has_published_weights = has_result and view.summaries[row].images_seen is None
    is_pretrained = not (view.board.lacks_pretraining(row) or has_published_weights)
    return f"{100 * row.fraction:g} %" if is_pretrained else "—"


def row_name(view: BoardView, row: RowKey) -> str:
    """The row's label, with a note if the method is a re-implementation."""
    note = " (re-implementation)" if view.summaries[row].method.reconstruction else ""
    return view.labels[row] + note


def method_descriptions(view: BoardView) -> list[tuple[str, str]]:
    """(method, one sentence on the method) of every method that `method_inputs` describes."""
    methods = sorted({row.method for row in view.board.rows})
    described = [(method, view.method_inputs.get(method, {}).get("about")) for method in methods]
    return [(method, about) for method, about in described if about]


def untimed_note(board: Board) -> str:
    """The note that explains empty cost columns; "" if the suite reports times."""
    return UNTIMED if board.has_no_times else ""


def difference_rows(view: BoardView, student: str | None = None) -> list[DifferenceRow]:
    """One row per comparison and task; the mean over tasks is the last row of a comparison.

    `student` None: the comparisons of all students.
    """
    students = view.board.students if student is None else [student]
    for name in students:
        if name not in view.differences:
            view.differences[name] = _difference_rows(view, name)
    return [row for name in students for row in view.differences[name]]


def _difference_rows(view: BoardView, student: str) -> list[DifferenceRow]:
    columns = compare.columns_of(view.board, student)
    names = column_names(columns)
    rows = []
    for d in compare.difference_table(view.board, student):
        label = f"{view.labels[d.row]} - {view.labels[d.reference]}"
        task = compare.mean_name(columns) if d.column is None else names[d.column]
        rows.append(DifferenceRow(student, label, task, d))
    return rows


COST_HEAD = ["learning rate", "step time", "step time / kdep", "peak memory", "extra parameters"]
COST_HEAD += ["extra forward passes per image seen", "pre-training cost", "loss terms"]


def cost_entries(
    cost: families.RowCost, escape: Callable[[str, int], str]
) -> list[tuple[str, float | None]]:
    """(text, number) of each column of COST_HEAD.

    `escape`: function (text, largest length) -> text that is safe in the output format.
    """
    summary = cost.summary
    names = sorted(summary.terms, key=_by_stride)
    terms = ", ".join(f"{name} {100 * summary.terms[name]:.0f} %" for name in names)
    learning_rate = summary.learning_rate
    return [
        ("—" if learning_rate is None else f"{learning_rate:g}", learning_rate),
        (families.milliseconds(summary.step_s), summary.step_s),
        (text.ratio(cost.ratio), cost.ratio),
        (families.mebibytes(summary.peak_memory_bytes), summary.peak_memory_bytes),
        (text.count(summary.extra_parameters), summary.extra_parameters),
        (text.ratio(cost.forwards) + cost.mark, cost.forwards),
        (text.seconds(summary.cost_s), summary.cost_s),
        (escape(terms or "—", 300), None),
    ]


def _by_stride(term: str) -> tuple[str, int]:
    """The order of loss terms: s4 before s16."""
    digits = re.search(r"[0-9]*$", term)
    assert digits is not None
    return term[: digits.start()], int(digits[0] or 0)


FAMILY_HEAD = ["labels used", "data fraction", "epochs", "methods", "inputs", "step time / kdep"]
FAMILY_HEAD += ["largest peak memory", "extra parameters", "extra forward passes per image seen"]
FAMILY_HEAD += [
    f"mean difference from {reference} x100 [95 %]" for reference in families.REFERENCES
]
FAMILY_HEAD += ["methods left out"]


def family_entries(
    family: families.MethodFamily, escape: Callable[[str, int], str]
) -> list[tuple[str, float | None]]:
    """(text, number) of each column of FAMILY_HEAD; `escape` as in `cost_entries`."""
    costs, epochs = family.costs, family.epochs
    reads = ", ".join(f"{input_name} ({n})" for input_name, n in family.reads.items())
    memory = max((m for c in costs if (m := c.summary.peak_memory_bytes)), default=None)
    entries: list[tuple[str, float | None]] = [
        (_labels_of_family(family), None),
        (f"{100 * family.fraction:g} %", family.fraction),
        ("—" if epochs is None else f"{epochs:g}", epochs),
        (str(len(costs)), len(costs)),
        (escape(reads or "—", 300), None),
        (families.spread([c.ratio for c in costs]), None),
        (families.mebibytes(memory), memory),
        (families.spread([c.summary.extra_parameters for c in costs], 0), None),
        (families.spread([c.forwards for c in costs]) + families.mark_of(costs), None),
    ]
    for strength in family.strength.values():
        est = strength.estimate
        note = f", {strength.methods} methods" if strength.methods != len(costs) else ""
        entries.append((text.gap(est) + note, est.mean) if est else ("—", None))
    return [*entries, (escape(", ".join(family.left_out) or "—", 300), None)]


def _labels_of_family(family: families.MethodFamily) -> str:
    """The labels that the methods used, as in the summary; with counts if the methods differ."""
    counts = Counter(labels_text(cost.summary) for cost in family.costs)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{shown} ({n})" for shown, n in counts.most_common())


def reduction_rows(view: BoardView) -> list[tuple[str, str, str, str, efficiency.ReductionFactor]]:
    """(student, method, name of the reference row, kind of budget, factor) of every factor."""
    return [
        (student, method, view.labels[goal], efficiency.AXES[axis], reduction)
        for student in view.board.students
        for method, goal, axis, reduction in efficiency.reduction_factors(view.board, student)
    ]


def failures(view: BoardView) -> list[tuple[str, str, str]]:
    """(run or file, status, reason) of all failed and missing runs and damaged files."""
    table = []
    places = sorted(view.board.results, key=lambda place: (place[0].order(), place[1]))
    for row, column in places:
        result = view.board.results[row, column]
        for run in [*result.failed, *result.missing]:
            where = f"{row.student}, {view.labels[row]}, {column.task}, "
            where += f"pre-training seed {run.pretrain_seed}, transfer seed {run.transfer_seed}"
            table.append((where, run.status, _reworded(run.error or "has not run yet")))
    table += [
        (name if "/" in name else f"records/{name}", "damaged", sentence)
        for name, sentence in view.board.damaged
    ]
    return table


GIT = "git commit (+: with uncommitted changes)"


def _reworded(error: str) -> str:
    """An error text of a record, with the phrases of earlier versions replaced."""
    error = error.replace("the loss went bad in", "the loss became infinite or NaN in")
    return error.replace("; to mend it: ", ". Fix: ")


def environment(board: Board) -> dict[str, list[str]]:
    """Item (device, threads, data, packages, ...) -> its values in the records.

    If an item has several values, each is followed by its number of records.
    """
    ok = [r for r in board.runs if r.status == "ok"]
    counters = {
        "device": Counter(r.cost.device or "unknown" for r in ok),
        "CPU threads": Counter(
            "unknown" if r.cost.threads is None else str(r.cost.threads) for r in ok
        ),
        "data": Counter(_data_text(r) for r in ok),
        "data fingerprint": Counter(r.data.fingerprint or "unknown" for r in ok),
        "teacher": Counter(
            _teacher_text(r.teacher.name, r.teacher.checksum) for r in ok if r.teacher
        ),
        "processor instruction sets": Counter(_units_text(r) for r in ok),
        "predictions on test images": Counter(_samples_text(r) for r in ok),
        GIT: Counter(r.git or "unknown" for r in ok),
        "packages": Counter(", ".join(f"{k} {v}" for k, v in r.packages) for r in ok),
    }
    shown = {}
    for item, counts in counters.items():
        values = sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
        is_single = len(values) == 1
        shown[item] = [v if is_single else f"{v} ({n} records)" for v, n in values if v]
    return {k: v for k, v in shown.items() if v}


def _data_text(run: Run) -> str:
    source = data_card.source_text(run.data.source)
    return f"{run.data.name} (source: {source})" if source else run.data.name


def _teacher_text(name: str, checksum: str) -> str:
    return f"{name}, weights checksum {checksum}" if checksum else name


def _units_text(run: Run) -> str:
    units = run.cost.processor_units
    return "unknown" if units is None else ", ".join(units) or "none"


def _samples_text(run: Run) -> str:
    if run.samples is None:
        return "not stored"
    file, _ = run.samples
    return "stored in samples/" if file else "stored in work_dirs only"


def command(board: Board, row: RowKey) -> str:
    """The command that reproduces a row.

    A record has the id of its transfer stage. If all ids of the row match a pattern, the command
    selects these stages by the pattern; otherwise it selects all stages of the method.
    """
    runs = board.runs_of(row)
    if submitter := runs[0].submitter:
        return f"# submitted by {submitter}; not made by this suite"
    fraction = "" if row.fraction == 1 else f".{row.fraction:g}"
    transfer = runs[0].transfer
    method, end = row.method, ""
    if transfer is not None:
        method, end = transfer.pretrained_by, f".{transfer.method}-*"
    pattern = f"transfer-*.{row.student}.{method}{fraction}.s*{end}"
    matches = re.compile(fnmatch.translate(pattern)).match
    only = pattern if all(matches(run.id) for run in runs) else row.method
    return text.command(runs[0].suite, only)


def commands(board: Board) -> dict[tuple[str, str], list[RowKey]]:
    """(student, command) -> the rows that this command reproduces, which may be several."""
    rows_of: dict[tuple[str, str], list[RowKey]] = {}
    for row in board.rows:
        rows_of.setdefault((row.student, command(board, row)), []).append(row)
    return rows_of


def answers(view: BoardView) -> dict[str, list[str]]:
    """Student -> the sentences at the top of its leaderboard."""
    sentences = {
        student: answer.sentences(view.board, student, view.labels, view.summaries)
        for student in view.board.students
    }
    return {student: lines for student, lines in sentences.items() if lines}

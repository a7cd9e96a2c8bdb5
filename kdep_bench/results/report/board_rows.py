"""Table rows made from a board, common to all output formats."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdep_bench.results import text
from kdep_bench.results.board import compare, efficiency, families
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.image_pairs import ImagePair
from kdep_bench.results.board.over_images import ImageDifference
from kdep_bench.results.board.row_summary import RowSummary, row_labels, summarize_row
from kdep_bench.results.claims.verdict import Verdict
from kdep_bench.results.records.store import Run
from kdep_bench.results.report import answer, data_notes, row_colours
from kdep_bench.results.report.probe_tables import ProbeSection

BELOW = " †"  # behind a score

MEAN_RANK = "Mean rank over all tasks, among methods with results for every task and seed."

PAIRED = (
    "Differences are paired by (pre-training seed, transfer seed). Their standard deviation is "
    "pooled over all methods of the task; for a method that is significantly noisier, its own is "
    "used. Positive differences are better for every metric. Result: significant if p is below "
    "0.05 after Holm's correction. The correction is made separately for kdep and for the other "
    "methods, and for means over tasks and for single tasks. Intervals are not corrected, so one "
    "may exclude 0 where the result is not significant. The marks of the best methods are "
    "corrected per task, so they may disagree with this table. A mean over tasks gives every task "
    "family the same weight."
)

LONG = 60  # rows of differences that are still read one by one

UNTIMED = (
    "No times: other work ran on the same machine (runtime.timed=False in the suite), so the "
    "records contain none."
)

SAVING = (
    "Reduction factor: the budget of the reference divided by the budget with which the method "
    "reaches the reference's score (mean over all tasks, each task family with the same weight). "
    "For each seed pair it is read off the method's curve of score against budget, made monotone "
    "and interpolated linearly in the logarithm of the budget. 'at least' and 'at most': the score "
    "is outside the curve, so the factor is a bound."
)


DifferenceRow = tuple[str, str, str, compare.Difference]


@dataclass(slots=True)
class BoardView:
    """A board with the values that all output formats need, computed once.

    `bold`: (student, task) -> rows among the best. `letters`: note about the data -> its letter.
    `method_inputs`: as in `report.build`. `differences`: student -> the rows of `difference_rows`
    once they are computed. `colour_keys`: method or method family -> colour class.
    """

    board: Board
    labels: dict[RowKey, str]
    summaries: dict[RowKey, RowSummary]
    bold: dict[tuple[str, Column], set[RowKey]]
    verdicts: list[Verdict]
    method_inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    letters: dict[str, str] = field(default_factory=dict)
    probes: ProbeSection = field(default_factory=ProbeSection)
    image_differences: list[ImageDifference] = field(default_factory=list)
    image_pairs: list[ImagePair] = field(default_factory=list)
    image_left_out: Counter[str] = field(default_factory=Counter)
    differences: dict[str, list[DifferenceRow]] = field(default_factory=dict)
    colour_keys: dict[str, int] = field(default_factory=dict)

    def colour_key(self, row: RowKey) -> str:
        """The method or method family that the colour of the row stands for."""
        return row_colours.key_of(row, self.summaries)

    def colour(self, row: RowKey) -> int:
        """Colour class of the row."""
        return self.colour_keys[self.colour_key(row)]

    def mark(self, row: RowKey, column: Column) -> str:
        """Letters of the notes about the data of this result; "" where there is none."""
        return data_notes.mark(self.board, self.letters, row, column)

    def is_bold(self, row: RowKey, column: Column) -> bool:
        """Whether this result is among the best of its student."""
        return row in self.bold.get((row.student, column), set())

    def won(self, row: RowKey, columns: Sequence[Column]) -> tuple[int, int]:
        """(number of `columns` where the row is among the best, number with a marked best)."""
        marked = [c for c in columns if self.bold.get((row.student, c))]
        return sum(self.is_bold(row, c) for c in marked), len(marked)

    def rows(self, columns: Sequence[Column]) -> list[RowKey]:
        """Rows with a result in any of `columns`."""
        return [a for a in self.board.rows if any((a, c) in self.board.results for c in columns)]


def make_view(
    board: Board,
    verdicts: list[Verdict] | None = None,
    method_inputs: Mapping[str, Mapping[str, Any]] | None = None,
) -> BoardView:
    """The view of `board`; `method_inputs` as in `report.build`."""
    bold = {
        (s, c): compare.best(board, s, c)
        for s in board.students
        for c in compare.columns_of(board, s)
    }
    summaries = {a: summarize_row(board, a) for a in board.rows}
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


def column_names(columns: Sequence[Column]) -> dict[Column, str]:
    """Headings: the task, and version or data where the task alone is not enough."""
    n_columns = Counter(c.task for c in columns)
    versions = {t: {c.version for c in columns if c.task == t} for t in n_columns}
    prints = {t: {c.fingerprint for c in columns if c.task == t} for t in n_columns}
    names = {}
    for c in columns:
        extra = f" v{c.version}" if len(versions[c.task]) > 1 else ""
        if len(prints[c.task]) > 1:
            extra += f" data {c.fingerprint[:8] or 'unknown'}"
        names[c] = f"{c.task}{extra} ({c.metric}{', less is better' if c.sign < 0 else ''})"
    return names


def labels_text(summary: RowSummary) -> str:
    """Whether pre-training used labels, as text for tables."""
    transfer = summary.transfer
    at_transfer = transfer is not None and transfer.teacher_labels_used
    if summary.method.label_policy == "none":
        own = "no pre-training"
    elif summary.method.labels_used:
        own = "yes"
    else:
        own = "by its teacher" if summary.method.label_policy == "labels" else "no"
    return f"{own}; by its teacher at transfer" if at_transfer else own


def fraction_text(view: BoardView, row: RowKey) -> str:
    """The data fraction of pre-training; a dash for methods not pre-trained here."""
    return "—" if view.board.fixed(row) else f"{100 * row.fraction:g} %"


def row_name(view: BoardView, row: RowKey) -> str:
    """The row's label, marked where the method was re-implemented from the paper's text."""
    note = " (re-implementation)" if view.summaries[row].method.reconstruction else ""
    return view.labels[row] + note


def untimed_note(board: Board) -> str:
    """The note that explains empty cost columns, for suites that report no times; otherwise ""."""
    return UNTIMED if board.untimed else ""


def difference_rows(view: BoardView, student: str | None = None) -> list[DifferenceRow]:
    """(student, 'a - b', task, difference) of every comparison; a pair's mean over tasks last."""
    owners = view.board.students if student is None else [student]
    for owner in owners:
        if owner not in view.differences:
            view.differences[owner] = _difference_rows(view, owner)
    return [row for owner in owners for row in view.differences[owner]]


def _difference_rows(view: BoardView, student: str) -> list[DifferenceRow]:
    columns = compare.columns_of(view.board, student)
    names = column_names(columns)
    rows = []
    for d in compare.difference_table(view.board, student):
        label = f"{view.labels[d.row]} - {view.labels[d.reference]}"
        task = compare.mean_name(columns) if d.column is None else names[d.column]
        rows.append((student, label, task, d))
    return rows


COST_HEAD = ["learning rate", "step time", "step time / kdep", "peak memory", "extra parameters"]


def cost_entries(
    cost: families.RowCost, name: Callable[[str, int], str]
) -> list[tuple[str, float | None]]:
    """(text, number) of each column of COST_HEAD; `name` escapes names from configs."""
    f = cost.summary
    terms = ", ".join(f"{k} {100 * v:.0f} %" for k, v in f.terms.items())
    rate = f.learning_rate
    return [
        ("—" if rate is None else f"{rate:g}", rate),
        (families.milliseconds(f.step_s), f.step_s),
        (text.ratio(cost.ratio), cost.ratio),
        (families.mebibytes(f.peak_memory_bytes), f.peak_memory_bytes),
        (text.count(f.extra_parameters), f.extra_parameters),
        (text.ratio(cost.forwards), cost.forwards),
        (text.seconds(f.cost_s), f.cost_s),
        (name(terms or "—", 300), None),
    ]


FAMILY_HEAD = ["labels used", "data fraction", "epochs", "methods", "inputs", "step time / kdep"]


def family_entries(
    f: families.MethodFamily, name: Callable[[str, int], str]
) -> list[tuple[str, float | None]]:
    """(text, number) of each column of FAMILY_HEAD; `name` escapes names from configs."""
    reads = ", ".join(f"{input_name} ({n})" for input_name, n in f.reads.items())
    memory = max((m for c in f.costs if (m := c.summary.peak_memory_bytes)), default=None)
    entries: list[tuple[str, float | None]] = [
        ("yes" if f.labels else "no", None),
        (f"{100 * f.fraction:g} %", f.fraction),
        ("—" if f.epochs is None else f"{f.epochs:g}", f.epochs),
        (str(len(f.costs)), len(f.costs)),
        (name(reads or "—", 300), None),
        (families.spread([c.ratio for c in f.costs]), None),
        (families.mebibytes(memory), memory),
        (families.spread([c.summary.extra_parameters for c in f.costs], 0), None),
        (families.spread([c.forwards for c in f.costs]), None),
    ]
    for strength in f.strength.values():
        est = strength.estimate
        note = f", {strength.methods} methods" if strength.methods != len(f.costs) else ""
        entries.append((text.gap(est) + note, est.mean) if est else ("—", None))
    return [*entries, (name(", ".join(f.left_out) or "—", 300), None)]


def saving_rows(view: BoardView) -> list[tuple[str, str, str, str, efficiency.Saving]]:
    """(student, method, the row whose score it reaches, budget, saving)."""
    return [
        (student, method, view.labels[goal], efficiency.AXES[axis], saving)
        for student in view.board.students
        for method, goal, axis, saving in efficiency.savings(view.board, student)
    ]


def failures(view: BoardView) -> list[tuple[str, str, str]]:
    """(run or file, status, reason) of all that failed, is missing or is damaged."""
    table = []
    for (row, column), result in sorted(
        view.board.results.items(), key=lambda kv: (kv[0][0].order(), kv[0][1])
    ):
        for run in [*result.failed, *result.missing]:
            where = f"{row.student}, {view.labels[row]}, {column.task}, "
            where += f"seeds {run.pretrain_seed}/{run.transfer_seed}"
            table.append((where, run.status, run.error or "has not run yet"))
    table += [
        (name if "/" in name else f"records/{name}", "damaged", sentence)
        for name, sentence in view.board.damaged
    ]
    return table


def environment(board: Board) -> dict[str, list[str]]:
    """Item -> its values in the records: devices, threads, data, code, packages.

    Of several values each is followed by its number of records.
    """
    ok = [r for r in board.runs if r.status == "ok"]
    counters = {
        "device": Counter(r.cost.device or "unknown" for r in ok),
        "threads": Counter(
            "unknown" if r.cost.threads is None else str(r.cost.threads) for r in ok
        ),
        "data": Counter(f"{r.data.name} ({r.data.source})" for r in ok),
        "data fingerprint": Counter(r.data.fingerprint or "unknown" for r in ok),
        "teacher": Counter(
            _teacher_text(r.teacher.name, r.teacher.checksum) for r in ok if r.teacher
        ),
        "processor instruction sets": Counter(_units_text(r) for r in ok),
        "per-sample outputs": Counter(_samples_text(r) for r in ok),
        "git": Counter(r.git or "unknown" for r in ok),
        "packages": Counter(", ".join(f"{k} {v}" for k, v in r.packages) for r in ok),
    }
    shown = {}
    for item, counts in counters.items():
        values = sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
        lone = len(values) == 1
        shown[item] = [v if lone else f"{v} ({n} records)" for v, n in values if v]
    return {k: v for k, v in shown.items() if v}


def _teacher_text(name: str, checksum: str) -> str:
    return f"{name}, checksum of its weights {checksum}" if checksum else name


def _units_text(run: Run) -> str:
    units = run.cost.processor_units
    return "unknown" if units is None else ", ".join(units) or "none listed"


def _samples_text(run: Run) -> str:
    if run.samples is None:
        return "none kept"
    return "kept in samples/" if run.samples[0] else "left in the work dir"


def command(board: Board, row: RowKey) -> str:
    """The command that reproduces a row.

    It selects the row's transfer stages by a pattern if all record ids (the ids of those stages)
    match it, otherwise all stages of the method.
    """
    if submitter := board.runs_of(row)[0].submitter:
        return f"# submitted by {submitter}; not run by this suite"
    fraction = "" if row.fraction == 1 else f".{row.fraction:g}"
    runs = board.runs_of(row)
    transfer = runs[0].transfer
    method, end = row.method, ""
    if transfer is not None:
        method, end = transfer.pretrained_by, f".{transfer.method}-*"
    pattern = f"transfer-*.{row.student}.{method}{fraction}.s*{end}"
    fits = re.compile(fnmatch.translate(pattern)).match
    only = pattern if all(fits(r.id) for r in runs) else row.method
    return text.command(runs[0].suite, only)


def answers(view: BoardView) -> dict[str, list[str]]:
    """Student -> the sentences at the top of its leaderboard."""
    sentences = {
        student: answer.sentences(view.board, student, view.labels, view.summaries)
        for student in view.board.students
    }
    return {student: lines for student, lines in sentences.items() if lines}

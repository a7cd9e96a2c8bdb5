"""leaderboard.md, leaderboard.csv and leaderboard.tex of a board."""

from __future__ import annotations

import csv
import fnmatch
import html
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdep_bench.results import answer, compare, data_notes, efficiency, families, reported, text
from kdep_bench.results.claims import Verdict, headlines
from kdep_bench.results.table import ArmFacts, ArmKey, Board, Column, arm_facts, arm_labels

BELOW = " †"  # behind a score
_LEGEND = (
    "Scores are x100: mean ± standard deviation over seeds (number of seeds). {best}: the best "
    "mean of a task and every method not significantly worse (multiple comparisons with the best, "
    "alpha 0.05, one spread estimated from all methods of the task); nothing is marked where no "
    "method has two seeds. Intervals "
    "are 95 % confidence intervals over the seeds that were run and do not cover another test set. "
    "A cell names its failed and missing seeds; its row then has no mean rank and no mean over "
    "tasks. †: mean below chance or below no pre-training."
)
LEGEND_MD = _LEGEND.format(best="**Bold**")
LEGEND_HTML = _LEGEND.format(best="Highlighted")
GLOSSARY_MD = "Terms: [GLOSSARY.md](../../GLOSSARY.md), also at the foot of index.html."

MEAN_RANK = "Mean rank over all tasks, among methods with results for every task and seed."

PAIRED = (
    "Differences are paired by (pre-training seed, transfer seed); their spread is estimated from "
    "all methods of the task; a method that is significantly noisier is compared by its own "
    "differences. Positive: better, also where less of the metric is better. Result: significant "
    "if p is below 0.05 after Holm's correction, made separately for kdep and for the other "
    "methods, for means over tasks and for single tasks. Intervals are not corrected, so one may "
    "exclude 0 where the result is not significant; the marking of the best is corrected per task, "
    "so the two can differ. A mean over tasks gives every task family the same weight."
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


@dataclass(slots=True)
class View:
    """A board with what every output format asks of it, worked out once."""

    board: Board
    labels: dict[ArmKey, str]
    facts: dict[ArmKey, ArmFacts]
    bold: dict[tuple[str, Column], set[ArmKey]]
    verdicts: list[Verdict]
    pages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    letters: dict[str, str] = field(default_factory=dict)  # of each note about the data

    def mark(self, arm: ArmKey, column: Column) -> str:
        """Letters of the notes about the data of this cell; "" where there is none."""
        return data_notes.mark(self.board, self.letters, arm, column)

    def is_bold(self, arm: ArmKey, column: Column) -> bool:
        """Whether this cell is among the best of its student."""
        return arm in self.bold.get((arm.student, column), set())

    def won(self, arm: ArmKey, columns: Sequence[Column]) -> tuple[int, int]:
        """In how many of `columns` the row is among the best, and how many have a best."""
        marked = [c for c in columns if self.bold.get((arm.student, c))]
        return sum(self.is_bold(arm, c) for c in marked), len(marked)

    def rows(self, columns: Sequence[Column]) -> list[ArmKey]:
        """Rows that have a cell in any of `columns`."""
        return [a for a in self.board.arms if any((a, c) in self.board.cells for c in columns)]


def make_view(
    board: Board,
    verdicts: list[Verdict] | None = None,
    pages: Mapping[str, Mapping[str, Any]] | None = None,
) -> View:
    """The view of `board`; `pages` as in `report.build`."""
    bold = {
        (s, c): compare.best(board, s, c)
        for s in board.students
        for c in compare.columns_of(board, s)
    }
    facts = {a: arm_facts(board, a) for a in board.arms}
    letters = data_notes.letters(board)
    return View(board, arm_labels(board), facts, bold, verdicts or [], pages or {}, letters)


def column_names(columns: Sequence[Column]) -> dict[Column, str]:
    """Headings: the task, and version or data where the task alone is not enough."""
    many = Counter(c.task for c in columns)
    versions = {t: {c.version for c in columns if c.task == t} for t in many}
    prints = {t: {c.fingerprint for c in columns if c.task == t} for t in many}
    names = {}
    for c in columns:
        extra = f" v{c.version}" if len(versions[c.task]) > 1 else ""
        if len(prints[c.task]) > 1:
            extra += f" data {c.fingerprint[:8] or 'unknown'}"
        names[c] = f"{c.task}{extra} ({c.metric}{', less is better' if c.sign < 0 else ''})"
    return names


def labels_text(facts: ArmFacts) -> str:
    """Whether pre-training used labels, as the tables show it."""
    if facts.arm.label_policy == "none":
        return "no pre-training"
    if facts.arm.labels_used:
        return "yes"
    return "by its teacher" if facts.arm.label_policy == "labels" else "no"


def share_text(view: View, arm: ArmKey) -> str:
    """The data fraction of pre-training; a dash for methods not pre-trained here."""
    return "—" if view.board.fixed(arm) else f"{100 * arm.share:g} %"


def arm_name(view: View, arm: ArmKey) -> str:
    """The row's label, marked where the method was re-implemented from the paper's text."""
    note = " (re-implementation)" if view.facts[arm].arm.reconstruction else ""
    return view.labels[arm] + note


def md_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A GitHub table; the first `left` columns are left-aligned. Cells are already escaped."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, rule, *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def untimed_note(board: Board) -> str:
    """Why the columns of costs are empty, where they are because the suite states no times."""
    return UNTIMED if board.untimed else ""


def _noted(view: View) -> list[str]:
    said = untimed_note(view.board)
    return [text.md(said), ""] if said else []


def _data_notes(view: View) -> list[str]:
    rows = [
        f"- ({n.letter}) {text.md(', '.join(n.tasks))}: {text.md(n.sentence, 600)}."
        for n in data_notes.legend(view.board, view.letters)
    ]
    if not rows:
        return []
    return [f"## {data_notes.HEADING}", "", data_notes.INTRODUCTION, "", *rows, ""]


def _summary(view: View) -> list[str]:
    lines = ["## Summary", "", MEAN_RANK, ""]
    lines += _noted(view)
    rows = []
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        columns = compare.columns_of(view.board, student)
        arms = sorted(view.board.arms_of(student), key=lambda a: (ranks.get(a, 1e9), a.order()))
        for arm in arms:
            facts = view.facts[arm]
            won, marked = view.won(arm, columns)
            rank = f"{ranks[arm]:.2f}" if arm in ranks else "incomplete"
            rows.append(
                [
                    text.md(student),
                    text.md(arm_name(view, arm)),
                    rank,
                    f"{won} of {marked}" if marked else "—",
                    labels_text(facts),
                    share_text(view, arm),
                    text.count(facts.images_seen),
                    text.seconds(facts.cost_s),
                    text.seconds(facts.cache_s),
                    text.ratio(facts.coverage),
                ]
            )
    return [*lines, *md_table(SUMMARY_HEAD, rows, 2), ""]


ROW_END = ["labels used", "data fraction", "images seen", "pre-training cost", "weights loaded"]
SUMMARY_HEAD = ["student", "method", "mean rank", "among the best", *ROW_END[:4]]
SUMMARY_HEAD += ["incl. teacher cache", ROW_END[4]]


def _task_family_table(view: View, family: str) -> list[str]:
    columns = view.board.columns_of(family)
    names = column_names(columns)
    head = ["student", "method", *(text.md(names[c]) for c in columns), *ROW_END]
    rows = []
    for arm in view.rows(columns):
        facts = view.facts[arm]
        cells = []
        for c in columns:
            shown = text.score(view.board.cell(arm, c))
            shown = f"**{shown}**" if view.is_bold(arm, c) else shown
            mark = view.mark(arm, c)
            shown = f"{shown} ({mark})" if mark else shown
            cells.append(shown + BELOW if compare.below(view.board, arm, c) else shown)
        row = [text.md(arm.student), text.md(arm_name(view, arm)), *cells, labels_text(facts)]
        row += [share_text(view, arm), text.count(facts.images_seen)]
        rows.append([*row, text.seconds(facts.cost_s), text.ratio(facts.coverage)])
    chance = [text.points(view.board.chance[c]) for c in columns]
    rows.append(["", "*chance*", *(f"*{c}*" for c in chance), "", "", "", "", ""])
    return [f"## Task family: {text.md(family)}", "", *_noted(view), *md_table(head, rows, 2), ""]


def difference_rows(
    view: View, student: str | None = None
) -> list[tuple[str, str, str, compare.Difference]]:
    """(student, 'a - b', task, difference) of every pair shown, the mean over tasks last."""
    rows = []
    for owner in view.board.students if student is None else [student]:
        columns = compare.columns_of(view.board, owner)
        names = column_names(columns)
        for d in compare.difference_table(view.board, owner):
            label = f"{view.labels[d.arm]} - {view.labels[d.other]}"
            what = compare.mean_name(columns) if d.column is None else names[d.column]
            rows.append((owner, label, what, d))
    return rows


def _differences(view: View) -> list[str]:
    """Those over all tasks first where the whole table is long."""
    found = difference_rows(view)
    if not found:
        return []
    lines = ["## Paired differences", "", PAIRED, ""]
    over_all = [row for row in found if row[3].column is None]
    if not over_all or len(found) <= LONG:
        return [*lines, *_difference_table(found), ""]
    single = [row for row in found if row[3].column is not None]
    lines += [*_difference_table(over_all), "", "<details><summary>Task by task</summary>", ""]
    return [*lines, *_difference_table(single), "", "</details>", ""]


def _difference_table(found: Iterable[tuple[str, str, str, compare.Difference]]) -> list[str]:
    rows = []
    for student, label, what, d in found:
        seeds = d.estimate.seeds if d.estimate else "—"
        cells = [text.md(student), text.md(label), text.md(what), text.gap(d.estimate)]
        rows.append([*cells, str(d.pairs), seeds, text.p_value(d.adjusted), d.verdict])
    return md_table(DIFFERENCE_HEAD, rows, 3)


DIFFERENCE_HEAD = ["student", "comparison", "task", "mean difference x100 [95 %]", "seed pairs"]
DIFFERENCE_HEAD += ["seeds", "p (Holm)", "result"]

COST_HEAD = ["learning rate", "step time", "step time / kdep", "peak memory", "extra parameters"]
COST_HEAD += ["extra forward passes per image seen", "pre-training cost", "loss terms"]


def cost_cells(
    cost: families.Cost, name: Callable[[str, int], str]
) -> list[tuple[str, float | None]]:
    """(text, number) of each column of COST_HEAD; `name` writes what others have named."""
    f = cost.facts
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
FAMILY_HEAD += ["peak memory, max.", "extra parameters", "extra forward passes per image seen"]
FAMILY_HEAD += [f"mean difference to {other} x100 [95 %]" for other in families.REFERENCES]
FAMILY_HEAD += ["methods left out"]


def family_cells(
    f: families.Family, name: Callable[[str, int], str]
) -> list[tuple[str, float | None]]:
    """(text, number) of each column of FAMILY_HEAD; `name` writes what others have named."""
    reads = ", ".join(f"{what} ({n})" for what, n in f.reads.items())
    memory = max((m for c in f.costs if (m := c.facts.peak_memory_bytes)), default=None)
    cells: list[tuple[str, float | None]] = [
        ("yes" if f.labels else "no", None),
        (f"{100 * f.share:g} %", f.share),
        ("—" if f.epochs is None else f"{f.epochs:g}", f.epochs),
        (str(len(f.costs)), len(f.costs)),
        (name(reads or "—", 300), None),
        (families.spread([c.ratio for c in f.costs]), None),
        (families.mebibytes(memory), memory),
        (families.spread([c.facts.extra_parameters for c in f.costs], 0), None),
        (families.spread([c.forwards for c in f.costs]), None),
    ]
    for found in f.strength.values():
        est = found.estimate
        of = f", {found.methods} methods" if found.methods != len(f.costs) else ""
        cells.append((text.gap(est) + of, est.mean) if est else ("—", None))
    return [*cells, (name(", ".join(f.left_out) or "—", 300), None)]


def _cost_table(view: View) -> list[str]:
    if not families.shown(view.board):
        return []
    rows = []
    for cost in families.costs(view.board, view.facts):
        row = [text.md(cost.arm.student), text.md(arm_name(view, cost.arm))]
        row.append(text.md(cost.facts.arm.family or "—"))
        rows.append([*row, *(shown for shown, _ in cost_cells(cost, text.md))])
    head = ["student", "method", "method family", *COST_HEAD]
    return ["## Cost of each method", "", families.COSTS, "", *md_table(head, rows, 3), ""]


def _method_family_table(view: View) -> list[str]:
    if not families.shown(view.board):
        return []
    rows = [
        [text.md(f.student), text.md(f.name), *(c for c, _ in family_cells(f, text.md))]
        for f in families.families(view.board, view.facts, view.pages)
    ]
    if not rows:
        return []
    head = ["student", "method family", *FAMILY_HEAD]
    return ["## Method families", "", families.FAMILIES, "", *md_table(head, rows, 2), ""]


def saving_rows(view: View) -> list[tuple[str, str, str, str, efficiency.Saving]]:
    """(student, method, the row whose score it reaches, budget, saving)."""
    return [
        (student, method, view.labels[goal], efficiency.AXES[axis], found)
        for student in view.board.students
        for method, goal, axis, found in efficiency.savings(view.board, student)
    ]


def _savings(view: View) -> list[str]:
    rows = []
    for student, method, against, axis, found in saving_rows(view):
        cells = [text.md(student), text.md(method), text.md(against), axis]
        rows.append([*cells, text.times(found.estimate, found.bound), found.estimate.seeds])
    if not rows:
        return []
    return ["## Efficiency", "", SAVING, "", *md_table(SAVING_HEAD, rows, 4), ""]


SAVING_HEAD = ["student", "method", "reference", "budget", "reduction factor [95 %]", "seeds"]


def _claims(view: View) -> list[str]:
    if not view.verdicts:
        return []
    first = headlines(view.verdicts)
    lines = ["## Claims", "", *_claim_table(first), ""]
    if len(first) < len(view.verdicts):
        lines += ["<details><summary>By task family</summary>", ""]
        lines += [*_claim_table(view.verdicts), "", "</details>", ""]
    return lines


def _claim_table(verdicts: list[Verdict]) -> list[str]:
    rows = []
    for v in verdicts:
        more = "—" if v.seeds_to_decide is None else str(v.seeds_to_decide)
        who = [text.md(v.title), text.md(v.student or "—"), text.md(v.scope), f"**{v.shown}**"]
        what = [html.escape(x, quote=False) for x in (v.interval, v.threshold, v.cost)]
        rows.append([*who, *what, more, text.md(v.reason, 300)])
    head = ["claim", "student", "tasks", "verdict", "measured [95 %]", "threshold", "cost ratio"]
    return md_table([*head, "seeds needed (power 0.8)", "reason"], rows, 4)


ALIGNMENT = (
    "Std ratio: largest over smallest standard deviation among the channels of the teacher's "
    "feature (raw), after the alignment (aligned), and of the training target (transformed)."
)
ALIGNMENT_HEAD = ["student", "method", "teacher", "explained variance ratio", "std ratio: raw"]
ALIGNMENT_HEAD += ["std ratio: aligned", "std ratio: transformed"]
NOISE_HEAD = ["student", "task", "std. dev. over seeds", "degrees of freedom"]
NOISE_HEAD += ["independent seeds per method", "minimum detectable difference (power 0.8)"]


def _diagnostics(view: View) -> list[str]:
    lines = []
    rows = []
    for a in view.board.arms:
        f = view.facts[a].align
        if f is not None:
            row = [text.md(a.student), text.md(view.labels[a]), text.md(a.teacher or "—")]
            row += [text.ratio(f.explained_variance_ratio, 3), text.ratio(f.std_ratio_before)]
            ratios = (f.std_ratio_after_align, f.std_ratio_after_transform)
            rows.append([*row, *map(text.ratio, ratios)])
    if rows:
        lines += ["## Alignment", "", ALIGNMENT, "", *md_table(ALIGNMENT_HEAD, rows, 3), ""]
    noises = []
    for student in view.board.students:
        columns = compare.columns_of(view.board, student)
        names = column_names(columns)
        for c in columns:
            n = compare.noise(view.board, student, c)
            if n is not None:
                row = [text.md(student), text.md(names[c]), text.points(n.sd)]
                noises.append([*row, str(n.df), str(n.n), text.points(n.gap_now)])
    if noises:
        lines += ["## Seed noise (x100)", "", *md_table(NOISE_HEAD, noises, 2), ""]
    return lines


def _reported(view: View) -> list[str]:
    rows = reported.rows_for(view.board)
    if not rows:
        return []
    table = md_table(reported.HEAD, [reported.cells(r) for r in rows], 2)
    return ["## Reported elsewhere", "", reported.SOURCE, "", *table, ""]


FAILURE_HEAD = ["run", "status", "reason"]


def failures(view: View) -> list[tuple[str, str, str]]:
    """(what, status, sentence) of everything that failed, is missing or is damaged."""
    found = []
    for (arm, column), cell in sorted(
        view.board.cells.items(), key=lambda kv: (kv[0][0].order(), kv[0][1])
    ):
        for run in [*cell.failed, *cell.missing]:
            where = f"{arm.student}, {view.labels[arm]}, {column.task}, "
            where += f"seeds {run.pretrain_seed}/{run.transfer_seed}"
            found.append((where, run.status, run.error or "has not run yet"))
    found += [(f"records/{name}", "damaged", sentence) for name, sentence in view.board.damaged]
    return found


def _failures(view: View, most: int = 200) -> list[str]:
    found = failures(view)
    lines = []
    if found:
        rows = [[text.md(a, 200), b, text.md(c, 500)] for a, b, c in found[:most]]
        lines = ["## Failed, missing, damaged", ""]
        lines += [*md_table(FAILURE_HEAD, rows, 3), ""]
        if len(found) > most:
            lines += [f"... and {len(found) - most} more in leaderboard.csv and records/.", ""]
    if view.board.remarks:
        lines += ["## Remarks", "", *_capped(view.board.remarks, most), ""]
    return lines


def _capped(remarks: list[str], most: int) -> list[str]:
    lines = [f"- {text.md(r, 600)}" for r in remarks[:most]]
    rest = len(remarks) - most
    return [*lines, f"- ... and {rest} more remarks."] if rest > 0 else lines


def environment(board: Board) -> dict[str, list[str]]:
    """What the records say of devices, threads, data, code and packages; each value with its count
    where there are several."""
    ok = [r for r in board.runs if r.status == "ok"]
    facts = {
        "device": Counter(r.cost.device or "unknown" for r in ok),
        "threads": Counter(
            "unknown" if r.cost.threads is None else str(r.cost.threads) for r in ok
        ),
        "data": Counter(f"{r.data.name} ({r.data.source})" for r in ok),
        "data fingerprint": Counter(r.data.fingerprint or "unknown" for r in ok),
        "teacher": Counter(
            f"{r.teacher.name} {r.teacher.checksum}".strip() for r in ok if r.teacher
        ),
        "git": Counter(r.git or "unknown" for r in ok),
        "packages": Counter(", ".join(f"{k} {v}" for k, v in r.packages) for r in ok),
    }
    shown = {}
    for what, counts in facts.items():
        values = sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
        lone = len(values) == 1
        shown[what] = [v if lone else f"{v} ({n} records)" for v, n in values if v]
    return {k: v for k, v in shown.items() if v}


def _environment(view: View) -> list[str]:
    rows = [
        [what, "<br>".join(text.md(v, 400) for v in values[:20])]
        for what, values in environment(view.board).items()
    ]
    return ["## Environment", "", *md_table(["item", "value"], rows, 2), ""] if rows else []


def command(board: Board, arm: ArmKey) -> str:
    """The command that reproduces a row: by a pattern of the row's own stages where the records'
    ids (which are those of the transfer stages) show that it fits, else by the method."""
    share = "" if arm.share == 1 else f".{arm.share:g}"
    pattern = f"transfer-*.{arm.student}.{arm.method}{share}.s*"
    fits = re.compile(fnmatch.translate(pattern)).match
    runs = board.runs_of(arm)
    only = pattern if all(fits(r.id) for r in runs) else arm.method
    return text.command(runs[0].suite, only)


REPRODUCE_HEAD = ["student", "method", "command"]


def _reproduce(view: View) -> list[str]:
    rows = []
    for arm in view.board.arms:
        line = command(view.board, arm)
        rows.append([text.md(arm.student), text.md(view.labels[arm]), text.code(line)])
    if not rows:
        return []
    note = "`python tools/report.py <this folder>` rebuilds this file from its records."
    return ["## Reproduce", "", note, "", *md_table(REPRODUCE_HEAD, rows, 3), ""]


def answers(view: View) -> dict[str, list[str]]:
    """The sentences at the top, by student."""
    sentences = {
        student: answer.sentences(view.board, student, view.labels, view.facts)
        for student in view.board.students
    }
    return {student: lines for student, lines in sentences.items() if lines}


def _answer(view: View) -> list[str]:
    lines = []
    for student, sentences in answers(view).items():
        lines += [f"**Student {text.md(student)}**", ""] if len(view.board.students) > 1 else []
        lines += [*(f"- {text.md(sentence, 600)}" for sentence in sentences), ""]
    return lines


def markdown(view: View) -> str:
    """The whole leaderboard.md."""
    board = view.board
    counts = Counter(r.status for r in board.runs)
    many = ", ".join(f"{counts[s]} {s}" for s in ("ok", "failed", "missing") if counts[s])
    if board.damaged:
        many += f", {len(board.damaged)} damaged"
    lines = [f"# Leaderboard: {text.md(board.suite)}", "", f"Records: {many or 'none'}.", ""]
    lines += _answer(view)
    lines += [LEGEND_MD, "", GLOSSARY_MD, ""]
    lines += _data_notes(view)
    if view.board.runs:
        lines += _summary(view)
        for family in board.families:
            lines += _task_family_table(view, family)
    lines += _cost_table(view) + _method_family_table(view)
    lines += _differences(view) + _savings(view) + _claims(view) + _diagnostics(view)
    lines += _reported(view)
    lines += _failures(view) + _environment(view) + _reproduce(view)
    return "\n".join(lines).rstrip() + "\n"


CSV_HEAD = [
    "suite",
    "student",
    "row",
    "method",
    "teacher",
    "reimplementation",
    "labels_used",
    "label_policy",
    "data_fraction",
    "images_seen",
    "epochs",
    "pretrain_s",
    "cache_s",
    "align_s",
    "cost_s",
    "transfer_s",
    "weights_loaded",
    "task",
    "task_family",
    "version",
    "split",
    "metric",
    "direction",
    "chance",
    "data",
    "fingerprint",
    "mean",
    "sd",
    "n",
    "low95",
    "high95",
    "among_best",
    "rank_best",
    "rank_worst",
    "ok",
    "failed",
    "missing",
    "explained_variance_ratio",
    "std_ratio_before",
    "std_ratio_after_align",
    "std_ratio_after_transform",
    "mean_rank",
    "command",
]


def _csv_row(
    view: View, arm: ArmKey, c: Column, rank: tuple[int, int] | None, ends: tuple[object, object]
) -> list[object]:
    f, cell, est = view.facts[arm], view.board.cell(arm, c), view.board.cell(arm, c).estimate
    al = f.align
    row: list[object] = [view.board.suite, arm.student, view.labels[arm], arm.method, arm.teacher]
    row += [f.arm.reconstruction, f.arm.labels_used, f.arm.label_policy, arm.share, f.images_seen]
    row += [arm.epochs, f.pretrain_s, f.cache_s, f.align_s, f.cost_s, f.transfer_s, f.coverage]
    row += [c.task, c.family, c.version, c.split, c.metric, c.direction, view.board.chance[c]]
    row += [c.data, c.fingerprint]
    row += [est.mean, est.sd, est.n, est.low, est.high] if est else [None, None, 0, None, None]
    row += [view.is_bold(arm, c), *(rank or (None, None))]
    row += [len(cell.values), len(cell.failed), len(cell.missing)]
    row += [al.explained_variance_ratio, al.std_ratio_before] if al else [None, None]
    row += [al.std_ratio_after_align, al.std_ratio_after_transform] if al else [None, None]
    return [*row, *ends]


# In suites whose records have them; see `families.shown`.
CSV_COSTS = [
    "method_family",
    "step_s",
    "step_time_over_kdep",
    "peak_memory_bytes",
    "extra_parameters",
]
CSV_COSTS += ["extra_forwards", "learning_rate"]


def _csv_costs(cost: families.Cost | None) -> list[object]:
    if cost is None:
        return [None] * len(CSV_COSTS)
    f = cost.facts
    costs = [f.step_s, cost.ratio, f.peak_memory_bytes, f.extra_parameters, f.extra_forwards]
    return [f.arm.family, *costs, f.learning_rate]


def _csv_cell(value: object) -> object:
    if isinstance(value, str):
        return text.csv_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return json.dumps(round(value, 10))
    return "" if value is None else value


def csv_table(view: View) -> str:
    """leaderboard.csv: one line per (row, task), numbers as fractions and seconds, unrounded.

    Text that a spreadsheet could take for a formula starts with a quote mark.
    """
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    told = families.costs(view.board, view.facts) if families.shown(view.board) else []
    spent = {c.arm: c for c in told}
    noted = ["data_notes"] if view.letters else []
    writer.writerow([*CSV_HEAD, *(CSV_COSTS if told else []), *noted])
    for student in view.board.students:
        means = compare.mean_ranks(view.board, student)
        arms = view.board.arms_of(student)
        ends = {a: (means.get(a), command(view.board, a)) for a in arms}
        for c in compare.columns_of(view.board, student):
            ranks = compare.ranks(view.board, student, c)
            for arm in arms:
                row = _csv_row(view, arm, c, ranks.get(arm), ends[arm])
                row += _csv_costs(spent.get(arm)) if told else []
                if noted:
                    row.append("; ".join(data_notes.sentences(view.board.cell(arm, c).runs)))
                writer.writerow([_csv_cell(v) for v in row])
    return out.getvalue()


_TEX_ENDS = ["labels", "data fraction", "images seen", "cost", "weights loaded"]


def _tex_ends(view: View, arm: ArmKey) -> list[str]:
    f = view.facts[arm]
    ends = [labels_text(f), share_text(view, arm), text.count(f.images_seen)]
    return [*ends, text.seconds(f.cost_s), text.ratio(f.coverage)]


def _tex_table(head: list[str], rows: list[list[str]], left: int, note: str) -> list[str]:
    """A booktabs table; the cells of `rows` are LaTeX already."""
    columns = "l" * left + "r" * (len(head) - left)
    lines = [f"% {text.tex(note)}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [" & ".join(text.tex(h) for h in head) + r" \\", "\\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return [*lines, "\\bottomrule", "\\end{tabular}", ""]


def latex(view: View) -> str:
    """leaderboard.tex: booktabs tables to \\input, the summary and one per task family; each row's
    command in a comment."""
    lines = [
        "% Needs \\usepackage{booktabs}. Scores x100: mean, standard deviation, (number of seeds).",
        "",
    ]
    rows = []
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        arms = view.board.arms_of(student)
        for arm in sorted(arms, key=lambda a: (ranks.get(a, 1e9), a.order())):
            rank = f"{ranks[arm]:.2f}" if arm in ranks else "incomplete"
            cells = [student, arm_name(view, arm), rank, *_tex_ends(view, arm)]
            rows.append([text.tex(c) for c in cells])
    if rows:
        note = f"Summary. {MEAN_RANK}"
        lines += _tex_table(["student", "method", "mean rank", *_TEX_ENDS], rows, 2, note)
    for family in view.board.families:
        columns = view.board.columns_of(family)
        names = column_names(columns)
        rows = []
        for arm in view.rows(columns):
            row = [text.tex(arm.student), text.tex(arm_name(view, arm))]
            for c in columns:
                shown = text.tex(text.score(view.board.cell(arm, c)))
                shown = f"\\textbf{{{shown}}}" if view.is_bold(arm, c) else shown
                mark = view.mark(arm, c)
                row.append(f"{shown}\\textsuperscript{{{mark}}}" if mark else shown)
            rows.append([*row, *(text.tex(c) for c in _tex_ends(view, arm))])
        head = ["student", "method", *(names[c] for c in columns), *_TEX_ENDS]
        lines += _tex_table(head, rows, 2, f"Task family: {family}")
    for note in data_notes.legend(view.board, view.letters):
        words = f"{note.letter}: {', '.join(note.tasks)}: {note.sentence}."
        lines += [f"\\par\\footnotesize {text.tex(text.plain(words, 600))}", ""]
    for arm in view.board.arms:
        line = text.plain(f"{arm.student}, {view.labels[arm]}: {command(view.board, arm)}", 600)
        lines.append("% " + line.replace("\\", r"\textbackslash{}"))
    return "\n".join(lines).rstrip() + "\n"

"""Builds the text of leaderboard.md from a board, which contains all results of a folder."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

from kdep_bench.errors import first_of
from kdep_bench.results import text
from kdep_bench.results.board import compare, families
from kdep_bench.results.claims.verdict import Verdict, headlines
from kdep_bench.results.report import (
    ablation_tables,
    constant_columns,
    data_notes,
    image_tables,
    normalised_tables,
    probe_tables,
    reported,
    teacher_tables,
    transfer_rows,
)
from kdep_bench.results.report.board_rows import (
    BELOW_CHANCE_MARK,
    COST_HEAD,
    FAMILY_HEAD,
    LONG,
    MEAN_RANK,
    REDUCTION_NOTES,
    BoardView,
    DifferenceRow,
    answers,
    column_names,
    commands,
    cost_entries,
    difference_rows,
    environment,
    failures,
    family_entries,
    fraction_text,
    labels_text,
    method_descriptions,
    paired_notes,
    reduction_rows,
    row_name,
    rows_by_rank,
    untimed_note,
)

_SCORES = (
    "Scores are x100: mean ± standard deviation over seeds (number of seeds). A point is a "
    "difference of 1 on this scale."
)
_BEST = (
    "{best}: among the best of the task, which means that no other method is significantly better "
    "(multiple comparisons with the best, level 5 %). The standard deviation is pooled over all "
    "methods of the task. If the differences of two methods have a larger standard deviation, it "
    "is used for these two instead, so a method whose scores vary more can be among the best while "
    "one with a higher mean is not."
)
_NO_BEST = "No score is marked as best, because no method has two seeds."
_INTERVALS = (
    "Intervals are 95 % confidence intervals. They cover the variation between seeds, not between "
    "test sets."
)
_INCOMPLETE = (
    "A method with a failed or missing seed has no mean rank and no mean over tasks; its scores "
    "state how many seeds failed or are missing."
)
_LOW = "†: the mean is below chance, or below the mean without pre-training (scratch)."
LEGEND_HTML = [_SCORES, _BEST.format(best="Highlighted"), _INTERVALS, _INCOMPLETE, _LOW]


def legend(view: BoardView, best: str) -> list[str]:
    """The sentences that explain the scores of `view`; `best`: how the best ones are marked."""
    places = list(view.board.results)
    is_incomplete = any(not view.board.result(*place).is_complete for place in places)
    has_low = any(compare.is_below_chance_or_scratch(view.board, *place) for place in places)
    sentences = [_SCORES]
    if any(view.is_bold(*place) for place in places):
        sentences.append(_BEST.format(best=best))
    elif view.has_comparisons:
        sentences.append(_NO_BEST)
    sentences.append(_INTERVALS)
    return sentences + [_INCOMPLETE] * is_incomplete + [_LOW] * has_low


MAX_TEACHERS = 4  # teachers that are named at the top
GLOSSARY_MD = (
    "All headings are explained in [GLOSSARY.md](../../GLOSSARY.md) and at the foot of index.html."
)


def md_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a Markdown table with `left` left-aligned columns; entries must be escaped."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, rule, *rows]
    return ["| " + " | ".join(entries) + " |" for entries in lines]


def _table(
    view: BoardView,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int,
    chance: Sequence[str] | None = None,
) -> list[str]:
    """The lines of a Markdown table without columns that say nothing, and an empty line.

    The column 'student' is left out if there is one student, who is named at the top. Columns of
    dashes are left out, and settings with one value are stated below the table.

    Args:
        head, rows, left: as in `md_table`.
        chance: the row of chance scores, which is the last one.
    """
    columns = [head.index(name) for name in ("method", "comparison") if name in head]
    names = [row[columns[0]] if columns else "" for row in rows]
    same = constant_columns.constant(head, rows, names)
    hidden = {*same, *constant_columns.empty(head, rows)}
    hidden |= {i for i, name in enumerate(head) if name == "student" and view.has_one_student}
    lines = [[e for i, e in enumerate(row) if i not in hidden] for row in (head, *rows)]
    if chance is not None:
        lines.append([e for i, e in enumerate(chance) if i not in hidden])
    n_left = left - sum(i < left for i in hidden)
    table = [*md_table(lines[0], lines[1:], n_left), ""]
    if not same:
        return table
    values = ", ".join(f"*{head[i]}* {value}" for i, value in same.items())
    return [*table, f"The same in every row: {values}.", ""]


def _notes(notes: Iterable[str]) -> list[str]:
    """The explanations of a table as a list, and an empty line; "" is left out."""
    return [*(f"- {note}" for note in notes if note), ""]


def _data_notes(view: BoardView) -> list[str]:
    rows = [
        f"- ({note.letter}) {text.md(', '.join(note.tasks))}: {text.md(note.sentence, 600)}."
        for note in data_notes.legend(view.board, view.letters)
    ]
    if not rows:
        return []
    return [f"## {data_notes.HEADING}", "", data_notes.INTRODUCTION, "", *rows, ""]


def _summary(view: BoardView) -> list[str]:
    lines = ["## Summary", "", *_notes([*MEAN_RANK, text.md(untimed_note(view.board))])]
    table = []
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        columns = compare.columns_of(view.board, student)
        for row in rows_by_rank(view, student):
            summary = view.summaries[row]
            n_best, n_marked = view.count_best(row, columns)
            rank = f"{ranks[row]:.2f}" if row in ranks else "incomplete"
            table.append(
                [
                    text.md(student),
                    text.md(row_name(view, row)),
                    rank,
                    f"{n_best} of {n_marked}" if n_marked else "—",
                    labels_text(summary),
                    fraction_text(view, row),
                    text.count(summary.images_seen or None),
                    text.seconds(summary.cost_s),
                    text.seconds(summary.cache_s),
                    text.ratio(summary.coverage),
                ]
            )
    lines += _table(view, SUMMARY_HEAD, table, 2)
    descriptions = method_descriptions(view)
    if descriptions:
        lines += ["### Methods", ""]
        lines += [f"- {text.md(name)}: {text.md(about, 300)}" for name, about in descriptions]
        lines.append("")
    return lines


SUMMARY_HEAD = ["student", "method", "mean rank", "among the best", "labels used", "data fraction"]
SUMMARY_HEAD += ["images seen", "pre-training cost", "of which teacher cache", "weights loaded"]


def _task_family_table(view: BoardView, family: str) -> list[str]:
    columns = view.board.columns_of(family)
    names = column_names(columns)
    head = ["student", "method", *(text.md(names[c]) for c in columns), "labels used"]
    rows = []
    for row in view.rows(columns):
        scores = []
        for c in columns:
            shown = text.score(view.board.result(row, c))
            shown = f"**{shown}**" if view.is_bold(row, c) else shown
            mark = view.mark(row, c)
            shown = f"{shown} ({mark})" if mark else shown
            is_low = compare.is_below_chance_or_scratch(view.board, row, c)
            scores.append(shown + BELOW_CHANCE_MARK if is_low else shown)
        names_of_row = [text.md(row.student), text.md(row_name(view, row))]
        rows.append([*names_of_row, *scores, labels_text(view.summaries[row])])
    chance = ["", "*chance*", *(f"*{text.points(view.board.chance[c])}*" for c in columns), ""]
    return [f"## Task family: {text.md(family)}", "", *_table(view, head, rows, 2, chance)]


def _differences(view: BoardView) -> list[str]:
    """The difference table; a long one is split into means over tasks and single tasks."""
    table_rows = difference_rows(view)
    if not table_rows:
        return []
    lines = ["## Paired differences", "", *_notes(paired_notes(view))]
    over_all = [row for row in table_rows if row.difference.column is None]
    if not over_all or len(table_rows) <= LONG:
        return [*lines, *_difference_table(view, table_rows)]
    single = [row for row in table_rows if row.difference.column is not None]
    lines += _difference_table(view, over_all)
    lines += ["<details><summary>Task by task</summary>", ""]
    return [*lines, *_difference_table(view, single), "</details>", ""]


def _normalised(view: BoardView) -> list[str]:
    rows = normalised_tables.markdown_rows(view)
    if not rows:
        return []
    table = _table(view, normalised_tables.HEAD, rows, 2)
    notes = [text.md(note, 800) for note in normalised_tables.notes(view)]
    return [f"## {normalised_tables.HEADING}", "", *_notes(notes), *table]


def _image_differences(view: BoardView) -> list[str]:
    rows = image_tables.markdown_rows(view)
    if not rows:
        return []
    lines = [f"## {image_tables.HEADING}", "", *_notes(image_tables.notes(view))]
    lines += _table(view, image_tables.HEAD, rows, 3)
    pairs, rest = image_tables.pairs_markdown(view)
    lines += [f"## {image_tables.PAIRS_HEADING}", "", *_notes(image_tables.pairs_notes(view))]
    lines += ["<details><summary>Table of the images</summary>", ""]
    lines += [*_table(view, image_tables.PAIRS_HEAD, pairs, 3), *([rest, ""] if rest else [])]
    return [*lines, "</details>", ""]


def _difference_table(view: BoardView, table_rows: Iterable[DifferenceRow]) -> list[str]:
    rows = []
    for student, comparison, task, d in table_rows:
        seeds = d.estimate.seeds if d.estimate else "—"
        entries = [text.md(student), text.md(comparison), text.md(task), text.gap(d.estimate)]
        rows.append([*entries, str(d.pairs), seeds, text.p_value(d.adjusted), d.verdict])
    return _table(view, DIFFERENCE_HEAD, rows, 3)


DIFFERENCE_HEAD = ["student", "comparison", "task", "mean difference x100 [95 %]", "seed pairs"]
DIFFERENCE_HEAD += ["independent seeds", "p (Holm)", "result"]


def _cost_table(view: BoardView) -> list[str]:
    if not families.has_costs(view.board):
        return []
    rows = []
    for cost in families.costs(view.board, view.summaries):
        row = [text.md(cost.row.student), text.md(row_name(view, cost.row))]
        row.append(text.md(cost.summary.method.family or "—"))
        rows.append([*row, *(shown for shown, _ in cost_entries(cost, text.md))])
    head = ["student", "method", "method family", *COST_HEAD]
    notes = [text.md(note, 2000) for note in families.cost_notes(view.summaries.values())]
    return ["## Cost of each method", "", *_notes(notes), *_table(view, head, rows, 3)]


def _transfer_table(view: BoardView) -> list[str]:
    rows = [
        [text.md(row.student), text.md(row_name(view, row)), *(text.md(t) for t, _ in shown)]
        for row, shown in transfer_rows.entries(view)
    ]
    if not rows:
        return []
    table = _table(view, transfer_rows.HEAD, rows, 5)
    return [f"## {transfer_rows.HEADING}", "", *_notes(transfer_rows.notes(view)), *table]


def _method_family_table(view: BoardView) -> list[str]:
    if not families.has_costs(view.board):
        return []
    rows = [
        [text.md(f.student), text.md(f.name), *(c for c, _ in family_entries(f, text.md))]
        for f in families.families(view.board, view.summaries, view.method_inputs)
    ]
    if len(rows) < 2:  # a single family has nothing to be compared with
        return []
    head = ["student", "method family", *FAMILY_HEAD]
    notes = families.family_notes(view.summaries.values())
    return ["## Method families", "", *_notes(notes), *_table(view, head, rows, 2)]


def _reductions(view: BoardView) -> list[str]:
    rows = []
    for student, method, reference, axis, reduction in reduction_rows(view):
        entries = [text.md(student), text.md(method), text.md(reference), axis]
        rows.append([*entries, text.reduction(reduction), reduction.estimate.seeds])
    if not rows:
        return []
    return ["## Efficiency", "", *_notes(REDUCTION_NOTES), *_table(view, REDUCTION_HEAD, rows, 4)]


REDUCTION_HEAD = ["student", "method", "reference", "budget", "reduction factor [95 %]"]
REDUCTION_HEAD += ["independent seeds"]


def _claims(view: BoardView) -> list[str]:
    if not view.verdicts:
        return []
    first = headlines(view.verdicts)
    lines = ["## Claims", "", *_notes(claim_notes(view)), *_claim_table(view, first)]
    by_family = [v for v in view.verdicts if v not in first]
    if by_family:
        lines += ["<details><summary>By task family</summary>", ""]
        lines += [*_claim_table(view, by_family), "</details>", ""]
    return lines


CLAIM_HEAD = ["claim", "student", "tasks", "verdict", "measured [95 %]", "threshold", "cost ratio"]
CLAIM_HEAD += ["seeds needed (power 0.8)", "basis"]


def _claim_table(view: BoardView, verdicts: list[Verdict]) -> list[str]:
    rows = []
    for v in verdicts:
        seeds = "—" if v.seeds_to_decide is None else str(v.seeds_to_decide)
        names = [text.md(v.title), text.md(v.student or "—"), text.md(v.scope), f"**{v.label}**"]
        values = [html.escape(x, quote=False) for x in (v.interval, v.threshold, v.cost)]
        rows.append([*names, *values, seeds, text.md(v.reason, 300)])
    return _table(view, CLAIM_HEAD, rows, 4)


def claim_notes(view: BoardView) -> list[str]:
    """The explanations of the claims of `view`."""
    kinds = {v.kind for v in view.verdicts}
    has_families = len(headlines(view.verdicts)) < len(view.verdicts)
    notes = [_MEASURED[kind] for kind in _MEASURED if kind in kinds]
    notes.append(
        "Supported: the whole interval meets the threshold. Refuted: no part of it does. "
        "Undecided: otherwise."
    )
    corrected = "for all claims of this table"
    if has_families:
        corrected = (
            "(made separately for the verdicts over all tasks and for those on single task "
            "families)"
        )
    notes.append(
        "A claim is supported or refuted only if this also holds after Holm's correction "
        f"{corrected}; otherwise it is undecided."
    )
    if "rank_correlation" in kinds:
        notes.append("Claims about teachers are not corrected.")
    if has_families:
        notes.append(
            "A verdict over all tasks is also undecided if a task family has the opposite verdict "
            "before the correction."
        )
    if any(v.cost != "—" for v in view.verdicts):
        notes.append(
            "Cost ratio: pre-training cost of the first method divided by that of the second, both "
            "including the teacher cache. A claim with a limit is refuted if the ratio is above it."
        )
    if any(v.seeds_to_decide is not None for v in view.verdicts):
        notes.append(
            "Seeds needed: number of independent seeds with which an undecided claim would be "
            "decided with probability 0.8."
        )
    return notes


# Kind of claim -> what is measured.
_MEASURED = {
    "difference": "Measured: the score of the claim's first method minus that of its second, in "
    "points. The claim states that it is above the threshold.",
    "efficiency": "Measured, for a claim about a budget: the second method's budget divided by the "
    "budget with which the first method reaches its score.",
    "rank_correlation": "Measured, for a claim about teachers: the rank correlation of a property "
    "of the teachers with the scores of their students.",
}
ALIGNMENT = (
    "The alignment maps the teacher's pooled feature linearly to the student's width. Only methods "
    "with such an alignment are listed.",
    "Explained variance ratio: fraction of the feature's variance that the alignment keeps (a "
    "target of signed pairs has half of the components, so it keeps less).",
    "Std ratio: largest standard deviation of a channel divided by the smallest, in the teacher's "
    "feature (raw), after the alignment (aligned), and in the training target (transformed).",
    "The values are those of the first pre-training seed.",
)


def noise_notes(view: BoardView) -> list[str]:
    """The explanations of the table of the variation between seeds."""
    notes = [
        "Std. dev. over seeds: standard deviation of a method's scores in points, pooled over all "
        "methods of the task, with its degrees of freedom."
    ]
    if not view.has_comparisons:
        return notes
    notes.append(
        "Minimum detectable difference, in points: smallest true difference between two methods "
        "that a paired t test at 5 % finds with probability 0.8 (its power), without correction "
        "for several comparisons."
    )
    boards = [(s, c) for s in view.board.students for c in compare.columns_of(view.board, s)]
    if any(compare.model(view.board, student, [column]) for student, column in boards):
        notes.append(
            "It is computed from the differences within seed pairs and leaves out a method whose "
            "standard deviation is significantly larger than that of the others. So it is not a "
            "fixed multiple of the std. dev. over seeds."
        )
    return notes


ALIGNMENT_HEAD = ["student", "method", "teacher", "explained variance ratio", "std ratio: raw"]
ALIGNMENT_HEAD += ["std ratio: aligned", "std ratio: transformed"]
NOISE_HEADING = "Variation between seeds"
NOISE_HEAD = ["student", "task", "std. dev. over seeds", "degrees of freedom"]
NOISE_HEAD += ["independent seeds per method", "minimum detectable difference (power 0.8)"]


def _diagnostics(view: BoardView) -> list[str]:
    lines = []
    rows = []
    for key in view.board.rows:
        align = view.summaries[key].align
        if align is not None:
            row = [text.md(key.student), text.md(view.labels[key]), text.md(key.teacher or "—")]
            row.append(text.ratio(align.explained_variance_ratio, 3))
            ratios = (
                align.std_ratio_before,
                align.std_ratio_after_align,
                align.std_ratio_after_transform,
            )
            rows.append([*row, *map(text.ratio, ratios)])
    if rows:
        lines += ["## Alignment", "", *_notes(ALIGNMENT), *_table(view, ALIGNMENT_HEAD, rows, 3)]
    noises = []
    for student in view.board.students:
        columns = compare.columns_of(view.board, student)
        names = column_names(columns)
        for c in columns:
            noise = compare.noise(view.board, student, c)
            if noise is not None:
                row = [text.md(student), text.md(names[c]), text.points(noise.sd)]
                smallest = noise.detectable_difference if view.has_comparisons else None
                noises.append([*row, str(noise.df), str(noise.n), text.points(smallest)])
    if noises:
        notes = _notes(noise_notes(view))
        lines += [f"## {NOISE_HEADING}", "", *notes, *_table(view, NOISE_HEAD, noises, 2)]
    return lines


def _ablation(view: BoardView) -> list[str]:
    """The contrasts of an ablation, and the best level of every factor."""
    result = ablation_tables.ablation_of(view)
    if result is None:
        return []
    lines = [f"## {ablation_tables.HEADING}", "", ablation_tables.NOTE, ""]
    lines += [x for remark in result.remarks for x in (text.md(remark, 2000), "")]
    tables = (
        ("Best practice", ablation_tables.BEST_HEAD, ablation_tables.best_entries(result)),
        ("Contrasts", ablation_tables.HEAD, ablation_tables.entries(result)),
        ("Combinations", ablation_tables.RUN_HEAD, ablation_tables.run_entries(view, result)),
    )
    for title, head, entries in tables:
        rows = [[text.md(shown, 200) for shown, _ in row] for row in entries]
        left = 2 if head is ablation_tables.BEST_HEAD else 3
        lines += [f"### {title}", "", *_table(view, head, rows, left)]
    return lines


def _teachers(view: BoardView) -> list[str]:
    """Scores and measures of the teachers, and how well each measure chooses a teacher."""
    all_studies = teacher_tables.teacher_studies(view)
    if not all_studies:
        return []
    lines = [f"## {teacher_tables.HEADING}", ""]
    for note in teacher_tables.notes(all_studies):
        lines += [text.md(note, 2000), ""]
    tables = (
        (teacher_tables.teacher_head(all_studies), teacher_tables.teacher_entries(all_studies), 3),
        (teacher_tables.CHOICE_HEAD, teacher_tables.choice_entries(all_studies), 4),
    )
    for head, entries, left in tables:
        rows = [[text.md(shown) for shown, _ in row] for _, row in entries]
        if head is teacher_tables.CHOICE_HEAD:
            lines += [f"### {teacher_tables.CHOICE_HEADING}", "", teacher_tables.CHOICE_NOTE, ""]
        lines += _table(view, head, rows, left)
    return lines


def _probes(view: BoardView) -> list[str]:
    """One table per probe, with its values."""
    section = view.probes
    if not section:
        return []
    lines = [f"## {probe_tables.HEADING}", "", section.introduction, ""]
    for table in section.tables:
        lines += [f"### {text.md(table.title)}", ""]
        lines += [text.md(table.about, 300), ""] if table.about else []
        head = ["student", "method", *(text.md(c.heading) for c in table.columns)]
        rows = [
            [
                text.md(row.key.student),
                text.md(section.labels[row.key]),
                *(row.score_text(c) for c in table.columns),
            ]
            for row in table.rows
        ]
        chance = None
        if any(v is not None for v in table.chance.values()):
            chance = ["", "*chance*", *(f"*{c.text_of(table.chance[c])}*" for c in table.columns)]
        lines += _table(view, head, rows, 2, chance)
    return [*lines, *_bullets(section.remarks, 200), *([""] if section.remarks else [])]


def _reported(view: BoardView) -> list[str]:
    rows = reported.rows_for(view.board)
    if not rows:
        return []
    table = md_table(reported.HEAD, [reported.entries(r) for r in rows], 2)
    return ["## Reported elsewhere", "", reported.SOURCE, "", *table, ""]


FAILURE_HEAD = ["run", "status", "reason"]


def _failures(view: BoardView, limit: int = 200) -> list[str]:
    table = failures(view)
    lines = []
    if table:
        rows = [[text.md(a, 200), b, text.md(c, 500)] for a, b, c in table[:limit]]
        lines = ["## Failed, missing, damaged", ""]
        lines += [*md_table(FAILURE_HEAD, rows, 3), ""]
        if len(table) > limit:
            lines += [f"... and {len(table) - limit} more in leaderboard.csv and records/.", ""]
    if view.board.remarks:
        lines += ["## Remarks", "", *_bullets(view.board.remarks, limit), ""]
    return lines


def networks(view: BoardView) -> list[str]:
    """Sentences that name the student and the teachers, if there are few."""
    sentences = [f"Student: {view.board.students[0]}."] if view.has_one_student else []
    teachers = list(dict.fromkeys(row.teacher for row in view.board.rows if row.teacher))
    if teachers:
        noun = "Teachers" if len(teachers) > 1 else "Teacher"
        sentences.append(f"{noun}: {first_of(teachers, MAX_TEACHERS)}.")
    return sentences


def _bullets(remarks: list[str], limit: int) -> list[str]:
    """The first `limit` remarks as a list, and the number of the others."""
    lines = [f"- {text.md(remark, 600)}" for remark in remarks[:limit]]
    rest = len(remarks) - limit
    return [*lines, f"- ... and {rest} more remarks."] if rest > 0 else lines


def _environment(view: BoardView) -> list[str]:
    rows = [
        [item, "<br>".join(text.md(v, 400) for v in values[:20])]
        for item, values in environment(view.board).items()
    ]
    return ["## Environment", "", *md_table(["item", "value"], rows, 2), ""] if rows else []


REPRODUCE_HEAD = ["student", "method", "command"]


def _reproduce(view: BoardView) -> list[str]:
    rows = [
        [text.md(student), ", ".join(text.md(view.labels[r]) for r in reproduced), text.code(line)]
        for (student, line), reproduced in commands(view.board).items()
    ]
    if not rows:
        return []
    note = (
        "`kdep-bench report <this folder>` rebuilds this file from its records. Each command "
        "below trains and evaluates the rows in its line; finished stages in `work_dirs/` are "
        "skipped."
    )
    return ["## Reproduce", "", note, "", *_table(view, REPRODUCE_HEAD, rows, 3)]


def _answer(view: BoardView) -> list[str]:
    lines = []
    for student, sentences in answers(view).items():
        lines += [f"**Student {text.md(student)}**", ""] if len(view.board.students) > 1 else []
        lines += [*(f"- {text.md(sentence, 600)}" for sentence in sentences), ""]
    return lines


def markdown(view: BoardView) -> str:
    """The text of leaderboard.md."""
    board = view.board
    counts = Counter(r.status for r in board.runs)
    status_text = ", ".join(f"{counts[s]} {s}" for s in ("ok", "failed", "missing") if counts[s])
    if board.damaged:
        status_text += f", {len(board.damaged)} damaged"
    lines = [f"# Leaderboard: {text.md(board.suite)}", ""]
    lines += [text.md(view.question, 300), ""] if view.question else []
    lines += [f"{text.md(sentence, 300)}" for sentence in networks(view)]
    lines += [f"Transfer runs: {status_text or 'none'}.", ""]
    lines += _answer(view)
    lines += ["### How to read the scores", "", *_notes(legend(view, "**Bold**"))]
    lines += [GLOSSARY_MD, ""]
    lines += _data_notes(view)
    if view.board.runs:
        lines += _summary(view)
        for family in board.families:
            lines += _task_family_table(view, family)
    lines += _transfer_table(view) + _cost_table(view) + _method_family_table(view)
    lines += _normalised(view)
    lines += _ablation(view)
    lines += [*_differences(view), *_image_differences(view), *_reductions(view), *_claims(view)]
    lines += _diagnostics(view) + _teachers(view) + _probes(view) + _reported(view)
    lines += _failures(view) + _environment(view) + _reproduce(view)
    return "\n".join(lines).rstrip() + "\n"

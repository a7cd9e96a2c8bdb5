"""Sections that compare methods: differences, efficiency, costs, families, alignment, noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

from kdep_bench.results import text
from kdep_bench.results.board import compare, families
from kdep_bench.results.report import (
    ablation_tables,
    board_rows,
    markdown,
    plots,
    teacher_tables,
    transfer_rows,
)
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import (
    LEFT,
    LEFT_WIDE,
    ONE_LINE,
    Entry,
    anchor,
    chip_entry,
    name_entry,
    number_entry,
    row_entry,
)
from kdep_bench.results.report.page.tables import Section, page_table


def differences_section(view: BoardView, drawn: Sequence[plots.Plot]) -> Section | None:
    """The paired differences as charts, and all of them in a folded table."""
    rows = []
    for student, label, task, difference in board_rows.difference_rows(view):
        estimate = difference.estimate
        entries = [
            name_entry(student),
            Entry(
                text.plain(label),
                LEFT,
                row=f"{anchor(view, difference.row)} {anchor(view, difference.reference)}",
            ),
            name_entry(task),
            number_entry(text.gap(estimate), estimate.mean if estimate else None),
            number_entry(str(difference.pairs), difference.pairs),
            Entry(estimate.seeds if estimate else "—", ONE_LINE),
            number_entry(text.p_value(difference.adjusted), difference.adjusted),
            chip_entry(difference.verdict),
        ]
        rows.append((student, entries))
    if not rows:
        return None
    return Section(
        "differences",
        "Paired differences",
        "differences",
        notes=board_rows.paired_notes(view),
        charts=[p for p in drawn if p.group == "differences"],
        n_rows=len(rows),
        table=page_table(view, "Paired differences", markdown.DIFFERENCE_HEAD, rows, left=3),
    )


def efficiency_section(view: BoardView, drawn: Sequence[plots.Plot]) -> Section | None:
    """The curves of score against budget, then the reduction factors read off them."""
    charts = [p for p in drawn if p.group == "efficiency"]
    rows = []
    for student, method, reference, budget_kind, reduction in board_rows.reduction_rows(view):
        entries = [name_entry(name) for name in (student, method, reference, budget_kind)]
        estimate = reduction.estimate
        entries.append(number_entry(text.reduction(reduction), estimate.mean))
        rows.append((student, [*entries, Entry(estimate.seeds, ONE_LINE)]))
    if not charts and not rows:
        return None
    caption = "Reduction factors at equal score"
    table = page_table(view, caption, markdown.REDUCTION_HEAD, rows, left=4) if rows else None
    content = {"charts": charts, "notes": board_rows.REDUCTION_NOTES, "table": table}
    return Section("efficiency", "Efficiency", "efficiency", **content)


def costs_section(view: BoardView) -> Section | None:
    """Learning rate, step time, memory and losses of each method."""
    if not families.has_costs(view.board):
        return None
    rows = []
    for cost in families.costs(view.board, view.summaries):
        entries = [name_entry(cost.row.student), row_entry(view, cost.row)]
        entries.append(name_entry(cost.summary.method.family or "—"))
        *numbers, (terms, _) = board_rows.cost_entries(cost, text.plain)
        entries += [*starmap(number_entry, numbers), Entry(terms, LEFT_WIDE)]
        rows.append((cost.row.student, entries))
    head = ["student", "method", "method family", *board_rows.COST_HEAD]
    table = page_table(view, "Costs", head, rows, left=3)
    notes = families.cost_notes(view.summaries.values())
    return Section("costs", "Cost of each method", "table", notes=notes, table=table)


def transfers_section(view: BoardView) -> Section | None:
    """The transfer methods, with their teachers and costs."""
    rows = []
    for row, values in transfer_rows.entries(view):
        entries = [name_entry(row.student), row_entry(view, row)]
        entries += [name_entry(t, limit=200) for t, _ in values[:3]]
        rows.append((row.student, [*entries, *starmap(number_entry, values[3:])]))
    if not rows:
        return None
    title = transfer_rows.HEADING
    table = page_table(view, title, transfer_rows.HEAD, rows, left=5)
    return Section("transfers", title, "table", notes=transfer_rows.notes(view), table=table)


def ablation_sections(view: BoardView) -> list[Section | None]:
    """The contrasts of an ablation, and the best value (level) of every factor of its grid."""
    result = ablation_tables.ablation_of(view)
    if result is None:
        return []
    tables = (
        ("Best practice", ablation_tables.BEST_HEAD, ablation_tables.best_entries(result)),
        (ablation_tables.HEADING, ablation_tables.HEAD, ablation_tables.entries(result)),
    )
    notes = [ablation_tables.NOTE, *result.remarks]
    return [
        Section(
            f"ablation-{k}",
            title,
            "table",
            notes=notes,
            table=page_table(view, title, head, [("", _entries(row, 2)) for row in entries], 2),
        )
        for k, (title, head, entries) in enumerate(tables)
    ]


def teachers_section(view: BoardView) -> Section | None:
    """Scores and measures of the teachers of a method."""
    all_studies = teacher_tables.teacher_studies(view)
    if not all_studies:
        return None
    head, entries = (
        teacher_tables.teacher_head(all_studies),
        teacher_tables.teacher_entries(all_studies),
    )
    rows = [(study.student, _entries(row, 3)) for study, row in entries]
    table = page_table(view, teacher_tables.HEADING, head, rows, 3)
    notes = teacher_tables.notes(all_studies)
    return Section("teachers", teacher_tables.HEADING, "table", notes=notes, table=table)


def teacher_choice_section(view: BoardView) -> Section | None:
    """How well each measure chooses a teacher."""
    all_studies = teacher_tables.teacher_studies(view)
    if not all_studies:
        return None
    entries = teacher_tables.choice_entries(all_studies)
    rows = [(study.student, _entries(row, 4)) for study, row in entries]
    title, notes = teacher_tables.CHOICE_HEADING, [teacher_tables.CHOICE_NOTE]
    table = page_table(view, title, teacher_tables.CHOICE_HEAD, rows, 4)
    return Section("teacher-choice", title, "table", notes=notes, table=table)


def _entries(row: teacher_tables.Entries, n_names: int) -> list[Entry]:
    """The entries of a row; the first `n_names` are names."""
    names = [name_entry(name, 200) for name, _ in row[:n_names]]
    return [*names, *starmap(number_entry, row[n_names:])]


def method_families_section(view: BoardView) -> Section | None:
    """The method families, each with its mean differences from kdep and from scratch."""
    if not families.has_costs(view.board):
        return None
    rows = []
    for family in families.families(view.board, view.summaries, view.method_inputs):
        entries = [name_entry(family.student), name_entry(family.name)]
        for entry, value in board_rows.family_entries(family, text.plain):
            entries.append(Entry(entry, LEFT_WIDE) if value is None else number_entry(entry, value))
        rows.append((family.student, entries))
    if len(rows) < 2:  # as in `markdown`
        return None
    head, title = ["student", "method family", *board_rows.FAMILY_HEAD], "Method families"
    table = page_table(view, title, head, rows, left=2)
    notes = families.family_notes(view.summaries.values())
    return Section("families", title, "table", notes=notes, table=table)


def alignment_section(view: BoardView) -> Section | None:
    """The table of explained variance and std ratios of the alignments."""
    rows = []
    for row in view.board.rows:
        align = view.summaries[row].align
        if align is None:
            continue
        kept = align.explained_variance_ratio
        values = [align.std_ratio_before, align.std_ratio_after_align]
        values.append(align.std_ratio_after_transform)
        entries = [name_entry(row.student), row_entry(view, row), name_entry(row.teacher or "—")]
        entries.append(number_entry(text.ratio(kept, 3), kept))
        entries += [number_entry(text.ratio(v), v) for v in values]
        rows.append((row.student, entries))
    if not rows:
        return None
    table = page_table(view, "Alignment", markdown.ALIGNMENT_HEAD, rows, left=3)
    return Section("alignment", "Alignment", "table", notes=markdown.ALIGNMENT, table=table)


def noise_section(view: BoardView) -> Section | None:
    """The variation between seeds of each task."""
    rows = []
    for student in view.board.students:
        columns = compare.columns_of(view.board, student)
        names = board_rows.column_names(columns)
        for c in columns:
            seed_noise = compare.noise(view.board, student, c)
            if seed_noise is not None:
                smallest = seed_noise.detectable_difference if view.has_comparisons else None
                entries = [
                    name_entry(student),
                    name_entry(names[c]),
                    number_entry(text.points(seed_noise.sd), seed_noise.sd),
                    number_entry(str(seed_noise.df), seed_noise.df),
                    number_entry(str(seed_noise.n), seed_noise.n),
                    number_entry(text.points(smallest), smallest),
                ]
                rows.append((student, entries))
    if not rows:
        return None
    table = page_table(view, markdown.NOISE_HEADING, markdown.NOISE_HEAD, rows, left=2)
    notes = markdown.noise_notes(view)
    return Section("noise", markdown.NOISE_HEADING, "table", notes=notes, table=table)

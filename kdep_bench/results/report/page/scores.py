"""Sections of the page: notes on the data, summary, claims, scores by task family and by class."""

from __future__ import annotations

from collections.abc import Sequence

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Column, RowKey
from kdep_bench.results.claims.verdict import Verdict, headlines
from kdep_bench.results.records.record import Record
from kdep_bench.results.report import board_rows, data_notes, markdown, plots
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import (
    LEFT,
    LEFT_NARROW,
    LEFT_ONE_LINE,
    LEFT_WIDE,
    ONE_LINE,
    Entry,
    anchor,
    chip_entry,
    fraction_entry,
    name_entry,
    number_entry,
    row_entry,
    score_entry,
)
from kdep_bench.results.report.page.tables import CHANCE, Section, Table, page_table


def notes_section(view: BoardView) -> Section | None:
    """Known limitations of the data, before any score."""
    rows = data_notes.legend(view.board, view.letters)
    if not rows:
        return None
    content = {"introduction": data_notes.INTRODUCTION, "rows": rows}
    return Section("data-notes", data_notes.HEADING, "data_notes", **content)


def summary_section(view: BoardView) -> Section:
    """Ranks, budgets and costs of all methods, the best mean rank first."""
    if not view.board.runs:
        return Section("summary", "Summary", "empty")
    table = []
    has_several_students = len(view.board.students) > 1
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        columns = compare.columns_of(view.board, student)
        for row in board_rows.rows_by_rank(view, student):
            summary = view.summaries[row]
            n_best, n_marked = view.count_best(row, columns)
            rank = ranks.get(row)
            entries = [
                name_entry(student),
                row_entry(view, row),
                number_entry("incomplete" if rank is None else f"{rank:.2f}", rank),
                number_entry(f"{n_best} of {n_marked}" if n_marked else "—", n_best),
                Entry(board_rows.labels_text(summary), ONE_LINE),
                fraction_entry(view, row),
                number_entry(text.count(summary.images_seen or None), summary.images_seen),
                number_entry(text.seconds(summary.cost_s), summary.cost_s),
                number_entry(text.seconds(summary.cache_s), summary.cache_s),
                number_entry(text.ratio(summary.coverage), summary.coverage),
            ]
            table.append((student, entries))
    return Section(
        "summary",
        "Summary",
        "summary",
        legend=markdown.legend(view, "Highlighted"),
        colours=view.colour_keys,
        notes=[*board_rows.MEAN_RANK, board_rows.untimed_note(view.board)],
        table=page_table(view, "Summary", markdown.SUMMARY_HEAD, table, 2, has_anchors=True),
        methods=board_rows.method_descriptions(view),
        choices=[
            (anchor(view, row), f"{student}: {label}" if has_several_students else label)
            for student in view.board.students
            for row in view.board.rows_of(student)
            for label in (board_rows.row_name(view, row),)
        ],
    )


def claims_section(view: BoardView, drawn: Sequence[plots.Plot]) -> Section | None:
    """The claims with their verdicts; those by task family are folded."""
    if not view.verdicts:
        return None
    main_verdicts = headlines(view.verdicts)
    by_family = None
    if len(main_verdicts) < len(view.verdicts):
        family_verdicts = [v for v in view.verdicts if v not in main_verdicts]
        by_family = _claim_table(view, "Claims by task family", family_verdicts)
    notes = markdown.claim_notes(view)
    table = _claim_table(view, "Claims", main_verdicts)
    charts = [p for p in drawn if p.group == "claims"]
    return Section(
        "claims", "Claims", "claims", notes=notes, charts=charts, table=table, by_family=by_family
    )


def _claim_table(view: BoardView, caption: str, verdicts: list[Verdict]) -> Table:
    rows = []
    for verdict in verdicts:
        claim = Entry(
            text.plain(verdict.title),
            LEFT_WIDE,
            kind="claim",
            note=text.plain(verdict.statement, 500),
        )
        entries = [
            chip_entry(verdict.verdict, verdict.label, LEFT),
            Entry(verdict.interval, LEFT_ONE_LINE),
            claim,
            name_entry(verdict.student or "—"),
            name_entry(verdict.scope),
            Entry(verdict.threshold, LEFT_NARROW),
            Entry(text.plain(verdict.reason, 300), LEFT_WIDE),
            Entry(verdict.cost),
            number_entry(text.count(verdict.seeds_to_decide), verdict.seeds_to_decide),
        ]
        rows.append((verdict.student, entries))
    head = ["verdict", "measured [95\u00a0%]", "claim", "student", "tasks", "threshold", "basis"]
    head += ["cost ratio", "seeds needed (power 0.8)"]
    return page_table(view, caption, head, rows, 7, css="")


def family_section(view: BoardView, index: int, drawn: Sequence[plots.Plot]) -> Section:
    """The scores of one task family, by method and task."""
    family = view.board.families[index]
    columns = view.board.columns_of(family)
    names = board_rows.column_names(columns)
    rows = []
    for row in _best_first(view, columns):
        entries = [name_entry(row.student), row_entry(view, row)]
        entries += [score_entry(view, row, c) for c in columns]
        entries.append(Entry(board_rows.labels_text(view.summaries[row]), ONE_LINE))
        rows.append((row.student, entries))
    chance = [
        number_entry(text.points(view.board.chance[c]), view.board.chance[c]) for c in columns
    ]
    rows.append((CHANCE, [Entry("", LEFT), Entry("chance", LEFT), *chance, Entry("")]))
    head = ["student", "method", *(text.plain(names[c], 60) for c in columns), "labels used"]
    title = f"Task family: {text.plain(family, 60) or 'unnamed'}"
    return Section(
        f"family-{index}",
        title,
        "family",
        table=page_table(view, title, head, rows, 2),
        charts=[p for p in drawn if p.group == "scores" and p.family == family],
    )


def _best_first(view: BoardView, columns: Sequence[Column]) -> list[RowKey]:
    """The rows of a task family by student, then mean score; rows without all scores last."""

    def place(row: RowKey) -> tuple[str, bool, float]:
        estimates = [view.board.result(row, c).estimate for c in columns]
        scores = [c.sign * e.mean for c, e in zip(columns, estimates, strict=True) if e is not None]
        is_partial = len(scores) < len(columns)
        return row.student, is_partial, 0.0 if is_partial else -sum(scores)

    return sorted(view.rows(columns), key=place)


def classes_section(view: BoardView, complete_records: Sequence[Record]) -> Section | None:
    """The section with one table per task: the mean score of each class."""
    tables = []
    for title, classes, rows in plots.per_class(view, complete_records):
        lines = []
        for row, means in rows:
            scores = [number_entry(text.points(m), m) for m in means]
            lines.append((row.student, [name_entry(row.student), row_entry(view, row), *scores]))
        head = ["student", "method", *(text.plain(c, 40) for c in classes)]
        tables.append((title, page_table(view, f"Per class: {title}", head, lines, 2)))
    if not tables:
        return None
    note = "Mean over seeds, x100. There are no intervals, so small differences may be noise."
    return Section("classes", "Per class", "classes", note=note, tables=tables)

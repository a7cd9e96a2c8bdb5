"""Tables and sections of the page, as the data that the templates draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdep_bench.results import text
from kdep_bench.results.report import constant_columns, glossary
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import Entry

MAX_ROWS = 2000
CHANCE = "\0chance"  # in place of the student in the row of chance scores


class Section:
    """A part of the page with a title and an anchor.

    The template `templates/sections/<template>.html.j2` draws the `content`.
    """

    def __init__(self, anchor: str, title: str, template: str, **content: Any) -> None:
        self.anchor, self.title, self.content = anchor, title, content
        self.template = f"sections/{template}.html.j2"


@dataclass(frozen=True, slots=True)
class Heading:
    """The heading of a column, and the meaning of its term as hover text."""

    text: str
    left: bool
    hover: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table.

    `student`: the student by which a reader can filter the page; None: the row is always shown.
    `row`: as in `Entry`.
    """

    entries: Sequence[Entry]
    student: str | None = None
    is_chance: bool = False
    row: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A sortable table.

    `constant`: columns that are not shown, with the value that they have in every row. `omitted`:
    the number of rows that are only in leaderboard.csv. `has_anchors`: whether links to rows lead
    to this table.
    """

    caption: str
    head: Sequence[Heading]
    rows: Sequence[TableRow]
    css: str
    omitted: int = 0
    constant: Sequence[tuple[Heading, str]] = ()
    has_anchors: bool = False


def page_table(
    view: BoardView,
    caption: str,
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Entry]]],
    left: int = 1,
    css: str = "pin",
    has_anchors: bool = False,
) -> Table:
    """A sortable table in a scroll box that is reachable by keyboard.

    Args:
        rows: (student, entries) of each row.
        left: number of left-aligned columns.
        css: classes of the table; 'pin' keeps the row's name visible on a narrow screen.
        has_anchors: as in `Table`.

    If there is only one student, the header of the page names it, and the column 'student' is left
    out. Columns of dashes, and settings with the same value in every row, are left out too.
    """
    if len(view.board.students) == 1 and "student" in head:
        index = list(head).index("student")
        head = [*head[:index], *head[index + 1 :]]
        rows = [(owner, [*row[:index], *row[index + 1 :]]) for owner, row in rows]
        left -= index < left
    if css == "pin" and list(head[:2]) == ["student", "method"]:
        css = "pin second"
    headings = [_heading(name, i < left) for i, name in enumerate(head)]
    entries_of_rows = [entries for owner, entries in rows if owner != CHANCE]
    texts = [[entry.text for entry in entries] for entries in entries_of_rows]
    names = [next((e.text for e in entries if e.row), "") for entries in entries_of_rows]
    same = constant_columns.constant(head, texts, names)
    hidden = {*same, *constant_columns.empty(head, texts)}
    table_rows = []
    for student, entries in rows[:MAX_ROWS]:
        is_chance = student == CHANCE
        owner = text.plain(student) if student and not is_chance else None
        named = next((e.row for e in entries if e.row), "")
        kept = [e for i, e in enumerate(entries) if i not in hidden]
        table_rows.append(TableRow(kept, owner, is_chance, named))
    return Table(
        caption,
        [h for i, h in enumerate(headings) if i not in hidden],
        table_rows,
        f"sortable {css}".strip(),
        omitted=max(0, len(rows) - MAX_ROWS),
        constant=[(headings[i], value) for i, value in same.items()],
        has_anchors=has_anchors,
    )


def _heading(name: str, left: bool) -> Heading:
    term = glossary.term_of(name)
    return Heading(name, left, term.meaning if term else "")

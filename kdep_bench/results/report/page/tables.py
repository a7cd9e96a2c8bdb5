"""Tables and sections of the page, as the data that the templates draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdep_bench.results import text
from kdep_bench.results.report import glossary
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import Entry

MOST_ROWS = 2000
CHANCE = "\0chance"  # in place of the student in the row of chance scores


class Section:
    """A titled part of the page with an anchor; `templates/sections/<template>.html.j2` draws the
    `content`."""

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
    """A row; `student` filters it, None leaves it in."""

    entries: Sequence[Entry]
    student: str | None = None
    is_chance: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A sortable table; `omitted`: the number of its rows that are in leaderboard.csv alone."""

    caption: str
    head: Sequence[Heading]
    rows: Sequence[TableRow]
    css: str
    omitted: int = 0


def page_table(
    view: BoardView,
    caption: str,
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Entry]]],
    left: int = 1,
    css: str = "pin",
) -> Table:
    """A sortable table in a scroll box that is reachable by keyboard.

    Args:
        rows: (student, entries) of each row.
        left: number of left-aligned columns.
        css: 'pin' keeps the column with the row's name visible on a narrow screen.

    The column 'student' is left out if there is only one student, which the header names.
    """
    if len(view.board.students) == 1 and "student" in head:
        index = list(head).index("student")
        head = [*head[:index], *head[index + 1 :]]
        rows = [(owner, [*row[:index], *row[index + 1 :]]) for owner, row in rows]
        left -= index < left
    if css == "pin" and list(head[:2]) == ["student", "method"]:
        css = "pin second"
    table_rows = []
    for student, entries in rows[:MOST_ROWS]:
        is_chance = student == CHANCE
        owner = text.plain(student) if student and not is_chance else None
        table_rows.append(TableRow(entries, owner, is_chance))
    headings = [_heading(name, i < left) for i, name in enumerate(head)]
    omitted = max(0, len(rows) - MOST_ROWS)
    return Table(caption, headings, table_rows, f"sortable {css}".strip(), omitted)


def _heading(name: str, left: bool) -> Heading:
    term = glossary.term_of(name)
    return Heading(name, left, term.meaning if term else "")

"""Tables, table cells and sections of the page."""

from __future__ import annotations

from collections.abc import Sequence

from kdep_bench.results import text
from kdep_bench.results.report import glossary
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.markup import Raw, tag

MOST_ROWS = 2000
CHANCE = "\0chance"  # in place of the student in the row of chance scores


class Section:
    """A titled part of the page with an anchor."""

    def __init__(self, anchor: str, title: str, *children: object) -> None:
        self.anchor, self.title = anchor, title
        heading = tag("h2", title, id=f"h-{anchor}")
        self.markup = tag("section", heading, *children, id=anchor, aria_labelledby=f"h-{anchor}")


class TableEntry:
    """A table entry: its content, its CSS class and, for a number, its sort value."""

    def __init__(self, shown: object, value: float | None = None, css: str = "", is_number=False):
        self.shown, self.value, self.css, self.is_number = shown, value, css, is_number

    def markup(self) -> Raw:
        """The entry as <td>."""
        sort = None
        if self.is_number:
            sort = "" if self.value is None else repr(float(self.value))
        return tag("td", self.shown, class_=self.css or None, data_v=sort)


def number_entry(shown: str, value: float | None, css: str = "n") -> TableEntry:
    """An entry that sorts by `value`."""
    return TableEntry(shown, value, css, True)


def name_entry(name: str, limit: int = 80) -> TableEntry:
    """A name, left-aligned; short ones are not wrapped."""
    shown = text.plain(name, limit)
    return TableEntry(shown, css="l n" if len(shown) <= 34 else "l")


def page_table(
    view: BoardView,
    caption: str,
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[TableEntry]]],
    left: int = 1,
    css: str = "pin",
) -> Raw:
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
    entries = []
    for i, name in enumerate(head):
        term = glossary.term_of(name)
        hover = term and term.meaning
        entries.append(tag("th", name, scope="col", class_="l" if i < left else None, title=hover))
    body = []
    for student, row in rows[:MOST_ROWS]:
        kind = "chance" if student == CHANCE else None
        owner = text.plain(student) if student and kind is None else None
        body.append(tag("tr", *(c.markup() for c in row), class_=kind, data_student=owner))
    if len(rows) > MOST_ROWS:
        note = f"... and {len(rows) - MOST_ROWS} more rows in leaderboard.csv"
        body.append(tag("tr", tag("td", note, colspan=len(head), class_="l"), class_="chance"))
    if css == "pin" and list(head[:2]) == ["student", "method"]:
        css = "pin second"
    css = f"sortable {css}".strip()
    table = tag("table", tag("thead", tag("tr", *entries)), tag("tbody", *body), class_=css)
    return tag("div", table, class_="scroll", tabindex=0, role="group", aria_label=caption)


COLOURED = {"supported", "refuted", "undecided", "better", "worse"}


def chip(word: str, shown: str = "") -> Raw:
    """A status word as a badge, coloured for words in `COLOURED`."""
    return tag("span", shown or word, class_=f"chip {word if word in COLOURED else 'plain'}")

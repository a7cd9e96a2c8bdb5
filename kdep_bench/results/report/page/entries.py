"""Table entries of the page; `templates/tables.html.j2` draws each by its kind."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Column, RowKey
from kdep_bench.results.report import board_rows
from kdep_bench.results.report.board_rows import BoardView

# CSS classes of entries; see page.css.
LEFT = "l"  # left-aligned
LEFT_NARROW = "l s"  # left-aligned, with a small minimum width
LEFT_WIDE = "l w"  # left-aligned, with a large minimum width
ONE_LINE = "n"  # not wrapped
LEFT_ONE_LINE = f"{LEFT} {ONE_LINE}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A table entry.

    Attributes:
        text: what is shown.
        css: CSS classes of page.css, such as LEFT; "best": among the best; "hole": missing result.
        sort: the number to sort by; "" for a missing number; None sorts by `text`.
        kind: "text": `text`, with `note` on hover. "score": the same, followed by a link to the
            notes on the data, `letters`, and by `after`. "chip": a badge coloured by the status
            word `note`. "code": a command. "claim": a title with `note` below. "link": a link to
            `note`.
        row: the anchor of the row that the entry names; for a difference, the anchors of both.
        colour: the colour class of the row.
        colour_key: the method or method family that has this colour.
    """

    text: str
    css: str = ""
    sort: str | None = None
    kind: str = "text"
    note: str = ""
    letters: str = ""
    after: str = ""
    row: str = ""
    colour: int | None = None
    colour_key: str = ""


def number_entry(label: str, value: float | None, css: str = ONE_LINE) -> Entry:
    """An entry that sorts by `value`."""
    return Entry(label, css, sort_value(value))


def sort_value(value: float | None) -> str:
    """The attribute by which an entry sorts; "" sorts last."""
    return "" if value is None else repr(float(value))


def name_entry(name: str, limit: int = 80) -> Entry:
    """A name, left-aligned; short ones are not wrapped."""
    label = text.plain(name, limit)
    return Entry(label, _name_css(label))


def _name_css(label: str) -> str:
    return LEFT_ONE_LINE if len(label) <= 34 else LEFT


def chip_entry(status: str, label: str = "", css: str = ONE_LINE) -> Entry:
    """A status word as a badge."""
    return Entry(label or status, css, kind="chip", note=status)


def row_entry(view: BoardView, row: RowKey) -> Entry:
    """The name of a row; its hover text is the source of the method."""
    label = text.plain(board_rows.row_name(view, row), 140)
    source = text.plain(view.summaries[row].method.source, 200)
    key = view.colour_key(row)
    return Entry(
        label,
        _name_css(label),
        note=source,
        row=anchor(view, row),
        colour=view.colour_keys[key],
        colour_key=key,
    )


def anchor(view: BoardView, row: RowKey) -> str:
    """The id of the row in the HTML, for links; it depends only on the label of the row."""
    student = f"{row.student}-" if len(view.board.students) > 1 else ""
    name = re.sub(r"[^a-z0-9]+", "-", f"{student}{view.labels[row]}".lower()).strip("-")
    # The digest separates labels that have the same letters a-z and digits.
    digest = hashlib.sha256(f"{row.student} {view.labels[row]}".encode()).hexdigest()
    return f"row-{name[:80]}-{digest[:4]}"


def fraction_entry(view: BoardView, row: RowKey) -> Entry:
    """The data fraction of a row."""
    value = None if view.board.lacks_pretraining(row) else row.fraction
    return number_entry(board_rows.fraction_text(view, row), value)


def score_css(view: BoardView, row: RowKey, column: Column) -> str:
    """The CSS classes of a score, which colour the best and the missing ones."""
    if view.is_bold(row, column):
        return f"{ONE_LINE} best"
    return ONE_LINE if view.board.result(row, column).values else f"{ONE_LINE} hole"


def score_entry(view: BoardView, row: RowKey, column: Column) -> Entry:
    """A score with its interval on hover and its marks; the best and missing ones are coloured."""
    result = view.board.result(row, column)
    est = result.estimate
    hover = ""
    if est is not None and est.low is not None:
        hover = f"95 % interval {text.points(est.low)} to {text.points(est.high)}, {est.seeds}"
    is_low = compare.is_below_chance_or_scratch(view.board, row, column)
    return Entry(
        text.score(result),
        score_css(view, row, column),
        sort_value(None if est is None else est.mean),
        "score",
        hover,
        letters=view.mark(row, column),
        after=board_rows.BELOW_CHANCE_MARK if is_low else "",
    )

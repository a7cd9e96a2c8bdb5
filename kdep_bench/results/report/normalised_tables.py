"""The section with raw and normalised means over tasks, for leaderboard.md and the page."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.normalised import Normalised, normalised, reference_row
from kdep_bench.results.report import board_rows
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import ONE_LINE, name_entry, number_entry
from kdep_bench.results.report.page.tables import Section, page_table

HEADING = "Means over tasks, raw and normalised"
NOTES = (
    "A normalised score is (score - chance) / (reference - chance): 0 is chance, 1 is the "
    "reference. The reference is the supervised row with the most data and epochs (here: "
    "{reference}).",
    "In both means every task family has the same weight. Only methods with results for every task "
    "and seed are listed. These means have no intervals.",
    "With one task left out: the lowest and the highest normalised mean.",
)
HEAD = ["student", "method", "mean score x100", "normalised mean", "with one task left out"]


def _tables(view: BoardView) -> list[tuple[str, list[Normalised]]]:
    """(student, means of its rows) of every student with a reference."""
    tables = [(s, normalised(view.board, s)) for s in view.board.students]
    return [(student, table) for student, table in tables if table]


def notes(view: BoardView) -> list[str]:
    """The explanations, with the reference rows."""
    rows = [reference_row(view.board, student) for student, _ in _tables(view)]
    names = dict.fromkeys(view.labels[r] for r in rows if r)
    return [note.format(reference=", ".join(names)) for note in NOTES]


def _left_out_text(n: Normalised) -> str:
    """The lowest and the highest normalised mean with one task left out, as text."""
    (low, without_low), (high, without_high) = n.low, n.high
    if f"{low:.2f}" == f"{high:.2f}":
        return f"{low:.2f}"
    return f"{low:.2f} (without {without_low}) to {high:.2f} (without {without_high})"


def markdown_rows(view: BoardView) -> list[list[str]]:
    """Rows of the table in leaderboard.md; none without a reference."""
    return [
        [
            text.md(student),
            text.md(board_rows.row_name(view, n.row)),
            text.points(n.raw),
            f"{n.mean:.2f}",
            text.md(_left_out_text(n)),
        ]
        for student, table in _tables(view)
        for n in table
    ]


def page_section(view: BoardView) -> Section | None:
    """The section of index.html; None without a reference."""
    rows = []
    for student, table in _tables(view):
        for n in table:
            entries = [
                name_entry(student),
                name_entry(board_rows.row_name(view, n.row)),
                number_entry(text.points(n.raw), n.raw),
                number_entry(f"{n.mean:.2f}", n.mean),
                number_entry(text.plain(_left_out_text(n)), n.low[0], ONE_LINE),
            ]
            rows.append((student, entries))
    if not rows:
        return None
    table = page_table(view, HEADING, HEAD, rows, 2)
    shown = [text.plain(note, 800) for note in notes(view)]
    return Section("normalised", HEADING, "table", notes=shown, table=table)

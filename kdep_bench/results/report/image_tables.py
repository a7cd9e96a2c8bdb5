"""The section on differences over seeds and test images, for leaderboard.md and for the page."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.over_images import ImageDifference
from kdep_bench.results.report import board_rows
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import Entry, chip_entry, name_entry, number_entry
from kdep_bench.results.report.page.tables import Section, page_table

HEADING = "Differences over test images"
NOTE = (
    "For rows whose per-sample outputs are in this folder: the same differences with intervals "
    "that cover the seeds and the test images, paired by image (bootstrap of images, crossed with "
    "seeds). The intervals of all other tables cover seeds only. p after Holm's correction for the "
    "rows of this table."
)
HEAD = ["student", "comparison", "task", "mean difference x100 [95 %]", "covers", "p (Holm)"]
HEAD += ["result"]


def _labels(view: BoardView, d: ImageDifference) -> tuple[str, str, str]:
    names = board_rows.column_names(view.board.columns)
    return (
        d.row.student,
        f"{view.labels[d.row]} - {view.labels[d.reference]}",
        names[d.column],
    )


def markdown_rows(view: BoardView) -> list[list[str]]:
    """Rows of the table in leaderboard.md."""
    rows = []
    for d in view.image_differences:
        shown = [text.md(name) for name in _labels(view, d)]
        p = text.p_value(d.adjusted)
        rows.append([*shown, text.gap(d.estimate), d.estimate.seeds, p, d.verdict])
    return rows


def page_section(view: BoardView) -> Section | None:
    """The section of index.html."""
    rows = []
    for d in view.image_differences:
        student, comparison, task = _labels(view, d)
        entries = [
            name_entry(student),
            Entry(text.plain(comparison), "l"),
            name_entry(task),
            number_entry(text.gap(d.estimate), d.estimate.mean),
            Entry(d.estimate.seeds, "n"),
            number_entry(text.p_value(d.adjusted), d.adjusted),
            chip_entry(d.verdict),
        ]
        rows.append((student, entries))
    if not rows:
        return None
    table = page_table(view, HEADING, HEAD, rows, 3)
    return Section("over-images", HEADING, "table", notes=[NOTE], table=table)

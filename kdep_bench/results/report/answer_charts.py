"""Charts below the sentences of `answer`: KDEP minus each reference, on every task."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.report.answer import MAX_ROWS, REFERENCES
from kdep_bench.results.report.board_rows import BoardView, difference_rows
from kdep_bench.results.report.charts import Dot, dots
from kdep_bench.results.report.plots import Plot

MAX_CHARTS = 4
MAX_TASKS = 12  # dots per chart; with more, a reader would have to scroll far to the tables


def answer_charts(view: BoardView, student: str) -> list[Plot]:
    """One chart per row of KDEP and reference: the mean over tasks first, then the tasks."""
    pairs: dict[tuple[RowKey, str], list[Dot]] = {}
    for _, _, task, d in difference_rows(view, student):
        estimate = d.estimate
        if d.row.method != compare.BASE or d.reference.method not in REFERENCES:
            continue
        if estimate is None or estimate.low is None or estimate.high is None:
            continue
        values = 100 * estimate.mean, 100 * estimate.low, 100 * estimate.high
        dot = Dot(_short(task), *values, view.colour(d.row), d.significant)
        chart = pairs.setdefault((d.row, d.reference.method), [])
        chart.insert(0 if d.column is None else len(chart), dot)
    rows = list(dict.fromkeys(row for row, _ in pairs))[:MAX_ROWS]
    charts = []
    for row in rows:
        for method, name in REFERENCES.items():
            if dots_of_pair := pairs.get((row, method)):
                caption = f"{text.plain(view.labels[row], 40)} - {name}"
                svg = dots(
                    dots_of_pair[:MAX_TASKS],
                    f"{caption}: differences with 95 % interval; bold where significant",
                    "difference x100, mean and 95 % interval",
                    0.0,
                    "no difference",
                )
                charts.append(Plot("", "answer", "", student, caption, svg))
    return charts[:MAX_CHARTS]


def _short(task: str) -> str:
    """The name of a task or mean without the text in brackets."""
    return text.plain(task.split(" (")[0], 40)

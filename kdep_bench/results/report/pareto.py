"""Charts of score against cost, one point per row, with the Pareto front.

A row is on the front if no row with the same or a lower cost has a higher mean score. The scores of
two rows on the front may not differ significantly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdep_bench.results import text
from kdep_bench.results.board import compare, efficiency
from kdep_bench.results.board.board import Column, RowKey
from kdep_bench.results.budget_axis import Axis
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.chart_axes import (
    BOTTOM,
    WIDTH,
    frame,
    pixels,
    shorten_label,
    svg_chart,
    x_axis,
    y_axis,
)
from kdep_bench.results.report.plots import Plot
from kdep_bench.results.report.svg import join, tag
from kdep_bench.results.statistics import intervals as st

MIN_ROWS = 3  # with fewer rows there is no chart
MAX_NAMED_ROWS = 10  # rows of the front that are named below the chart
AXES: tuple[Axis, ...] = ("seconds", "flops")  # kinds of cost; the first with known values is drawn


@dataclass(frozen=True, slots=True)
class Mark:
    """A row: its cost, its score and its colour class."""

    label: str
    x: float
    y: float
    colour: int


def front(marks: Sequence[Mark]) -> list[Mark]:
    """The Pareto front, cheapest first."""
    marks_on_front: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (m.x, -m.y, m.label)):
        if not marks_on_front or mark.y > marks_on_front[-1].y:
            marks_on_front.append(mark)
    return marks_on_front


def scatter(marks: Sequence[Mark], title: str, xlabel: str, ylabel: str) -> Markup:
    """A chart of points with a logarithmic x axis.

    The points of the front are joined by a line, numbered, and named below the chart.
    """
    on_front = front(marks)
    fx, x_ticks = x_axis([m.x for m in marks], log_x=True)
    fy, y_ticks = y_axis([m.y for m in marks])
    parts = frame(fx, x_ticks, fy, y_ticks, (xlabel, ylabel))
    if len(on_front) > 1:
        path = "M" + "L".join(f"{pixels(fx(m.x))} {pixels(fy(m.y))}" for m in on_front)
        parts.append(tag("path", d=path, class_="line c2 d2"))
    for m in sorted(marks, key=lambda m: m in on_front):  # the front is drawn last, so it is on top
        place = {"cx": pixels(fx(m.x)), "cy": pixels(fy(m.y))}
        radius = 5 if m in on_front else 3.5
        parts.append(tag("circle", r=radius, class_=f"dot c{m.colour}", **place))
    y = BOTTOM + 54
    for i, m in enumerate(on_front[:MAX_NAMED_ROWS], 1):
        place = {"x": pixels(fx(m.x) - 8), "y": pixels(fy(m.y) + 4), "text_anchor": "end"}
        parts.append(tag("text", i, class_="label strong", **place))
        parts.append(tag("text", shorten_label(f"{i}  {m.label}", WIDTH - 16), x=8, y=y))
        y += 17
    return svg_chart(y, title, join(parts))


def draw(view: BoardView) -> list[Plot]:
    """Charts of score against pre-training cost; with several students, also against their size."""
    plots = []
    for index, student in enumerate(view.board.students):
        plots += _cost_plot(view, student, index)
    return plots + _size_plots(view)


def _score_name(columns: Sequence[Column]) -> str:
    name = compare.mean_name(columns) if len(columns) > 1 else text.plain(columns[0].task, 60)
    return f"{name} x100"


def _mean(view: BoardView, row: RowKey) -> float | None:
    """Mean score x100 of a row over tasks; None if a task or seed has no score."""
    columns = compare.columns_of(view.board, row.student)
    values = [view.board.values(row, c) for c in columns]
    means = st.mean_over(values, compare.task_weights(columns))
    return 100 * st.estimate(means).mean if means else None


def _cost_plot(view: BoardView, student: str, index: int) -> list[Plot]:
    board = view.board
    rows = [r for r in compare.complete_rows(board, student) if not board.lacks_pretraining(r)]
    for axis in AXES:
        marks = []
        for row in rows:
            x, y = efficiency.amount(board, row, axis), _mean(view, row)
            if x and y is not None:
                marks.append(Mark(text.plain(view.labels[row], 60), x, y, view.colour(row)))
        if len(marks) >= MIN_ROWS and len({m.x for m in marks}) > 1:
            name, unit = efficiency.AXES[axis], ", s" if axis == "seconds" else ""
            owner = f" · {text.plain(student, 40)}" if len(board.students) > 1 else ""
            caption = f"Score against {name}{owner}; one point per method, numbered: Pareto front"
            score = _score_name(compare.columns_of(board, student))
            svg = scatter(marks, caption, f"{name}{unit}, log scale", score)
            return [Plot(f"pareto-{index}-{axis}", "efficiency", "", student, caption, svg)]
    return []


def _size_plots(view: BoardView) -> list[Plot]:
    """Charts of score against parameters and FLOPs of the students, if all have the same tasks."""
    board = view.board
    tasks = {tuple(compare.columns_of(board, s)) for s in board.students}
    if len(board.students) < 2 or len(tasks) != 1:
        return []
    rows = [r for s in board.students for r in compare.complete_rows(board, s)]
    plots = []
    for name, key in (("parameters of the student", "params"), ("FLOPs of the student", "flops")):
        marks = []
        for row in rows:
            x, y = getattr(view.summaries[row].student, key), _mean(view, row)
            if x and y is not None:
                label = text.plain(f"{row.student}, {view.labels[row]}", 80)
                marks.append(Mark(label, float(x), y, view.colour(row)))
        if len({m.x for m in marks}) > 1:
            caption = f"Score against {name}; one point per method, numbered: Pareto front"
            score = _score_name(next(iter(tasks)))
            svg = scatter(marks, caption, f"{name}, log scale", score)
            plots.append(Plot(f"pareto-{key}", "efficiency", "", "", caption, svg))
    return plots

"""Draws the charts of a results folder, for the page and plots/, and computes per-class means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from kdep_bench.results import text
from kdep_bench.results.board import compare, efficiency
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.claims.verdict import headlines
from kdep_bench.results.records.record import Record
from kdep_bench.results.report import row_colours
from kdep_bench.results.report.board_rows import BoardView, column_names, difference_rows
from kdep_bench.results.report.charts import COLOURS, Dot, Line, dots, lines
from kdep_bench.results.statistics import intervals as st

MAX_LINES = 8  # lines per chart
MAX_DOTS = 40  # rows per dot chart
MAX_PAIRS = 24  # charts of differences; with more pairs, one chart per reference
MAX_POINTS = 240  # points per line
MAX_TRAINING_CHARTS = 60
MAX_CLASSES = 60  # columns of a per-class table


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart with its caption.

    `name`: name of its files without suffix. `group`: the section of the page. `family` and
    `student`: the task family and the student that it shows; "" if it shows several.
    """

    name: str
    group: str
    family: str
    student: str
    caption: str
    svg: Markup


def draw(view: BoardView, complete_records: Sequence[Record]) -> list[Plot]:
    """Draws every chart. `complete_records`: complete records, for training curves."""
    all_plots = []
    for i, student in enumerate(view.board.students):
        all_plots += _scores(view, student, i)
        all_plots += _differences(view, student, i)
        all_plots += _claims(view, student, i)
        all_plots += _efficiency(view, student, i)
    return all_plots + _training(view, complete_records)


def _student_text(view: BoardView, student: str) -> str:
    """The student's name for a caption; "" if there is only one student."""
    return f" · {text.plain(student, 40)}" if len(view.board.students) > 1 else ""


def _limit_text(rows: Sequence[Dot]) -> str:
    """End of the caption of a chart that cannot show all its rows; otherwise ""."""
    return f" · the first {MAX_DOTS} of {len(rows)} rows" if len(rows) > MAX_DOTS else ""


def _scores(view: BoardView, student: str, index: int) -> list[Plot]:
    """One chart per task with the score of each row; `index`: number of the student."""
    columns = compare.columns_of(view.board, student)
    names = column_names(columns)
    charts = []
    for j, column in enumerate(columns):
        rows = []
        for row in view.board.rows_of(student):
            estimate = view.board.result(row, column).estimate
            if estimate is not None:
                low, high = (None if v is None else 100 * v for v in (estimate.low, estimate.high))
                label = text.plain(view.labels[row], 60)
                bold = view.is_bold(row, column)
                rows.append(Dot(label, 100 * estimate.mean, low, high, view.colour(row), bold))
        rows.sort(key=lambda r: (-column.sign * r.value, r.label))
        if not rows:
            continue
        chance = view.board.chance[column]
        mark = None if chance is None else 100 * chance
        caption = text.plain(names[column], 60) + _student_text(view, student) + _limit_text(rows)
        title = f"{caption}: mean and 95 % interval of each method"
        svg = dots(rows[:MAX_DOTS], title, "x100, mean and 95 % interval", mark, "chance")
        charts.append(Plot(f"scores-{index}-{j}", "scores", column.family, student, caption, svg))
    return charts


def _differences(view: BoardView, student: str, index: int) -> list[Plot]:
    """One chart per pair of rows, with a row per task.

    If there are more than MAX_PAIRS pairs: one chart per reference, with the means over tasks.
    """
    n_tasks = len(compare.columns_of(view.board, student))
    pairs: dict[tuple[RowKey, RowKey], list[Dot]] = defaultdict(list)
    over_all: dict[str, list[Dot]] = defaultdict(list)
    for _, _, task, d in difference_rows(view, student):
        estimate = d.estimate
        if estimate is None or estimate.low is None or estimate.high is None:
            continue
        percent = 100 * estimate.mean, 100 * estimate.low, 100 * estimate.high
        values = *percent, view.colour(d.row), d.significant
        pairs[d.row, d.reference].append(Dot(text.plain(task, 60), *values))
        if d.tasks == n_tasks:
            row = text.plain(view.labels[d.row], 50)
            over_all[d.reference.method].append(Dot(row, *values))
    labels = view.labels
    charts = {f"{labels[a]} - {labels[b]}": rows for (a, b), rows in pairs.items()}
    if len(charts) > MAX_PAIRS:
        charts = {
            f"every method - {reference}, mean of {n_tasks} tasks": sorted(
                rows, key=lambda r: (-r.value, r.label)
            )
            for reference, rows in over_all.items()
        }
    drawn = []
    for j, (name, rows) in enumerate(charts.items()):
        caption = text.plain(name, 105) + _student_text(view, student) + _limit_text(rows)
        svg = dots(
            rows[:MAX_DOTS],
            f"{caption}: paired differences with 95 % interval",
            "difference x100, mean and 95 % interval",
            0.0,
            "no difference",
        )
        drawn.append(Plot(f"difference-{index}-{j}", "differences", "", student, caption, svg))
    return drawn


def _claims(view: BoardView, student: str, index: int) -> list[Plot]:
    """One chart with the measured differences of all claims, in the order of the claims."""
    rows = []
    for verdict in headlines(view.verdicts):
        measured = verdict.difference
        if (
            verdict.student != student
            or measured is None
            or measured.low is None
            or measured.high is None
        ):
            continue
        values = 100 * measured.mean, 100 * measured.low, 100 * measured.high
        is_decided = verdict.verdict in ("supported", "refuted")
        colour = row_colours.FIXED["kdep"]
        rows.append(Dot(text.plain(verdict.title, 70), *values, colour, is_decided))
    if len(rows) < 2:
        return []
    caption = f"Measured difference of each claim{_student_text(view, student)}{_limit_text(rows)}"
    svg = dots(
        rows[:MAX_DOTS],
        f"{caption}, with 95 % interval; bold where supported or refuted",
        "difference x100, mean and 95 % interval",
        0.0,
        "no difference",
    )
    return [Plot(f"claims-{index}", "claims", "", student, caption, svg)]


def _efficiency(view: BoardView, student: str, index: int) -> list[Plot]:
    """One chart per kind of budget: score (mean over tasks) of the methods with several budgets.

    The score of scratch, which has no budget, is a horizontal line.
    If a chart had more than MAX_LINES lines, there is one chart per teacher instead.
    """
    board = view.board
    columns = compare.columns_of(board, student)
    colour_by_method = {row.method: view.colour(row) for row in board.rows}
    scores = {}
    for row in compare.complete_rows(board, student):
        by_task = [board.values(row, column) for column in columns]
        if values := st.mean_over(by_task, compare.task_weights(columns)):
            scores[row] = st.estimate(values)
    scratch = next((row for row in scores if row.method == "scratch"), None)
    charts = []
    for axis, label in efficiency.AXES.items():
        points: dict[RowKey, tuple[float, st.Estimate]] = {}
        for row, score in scores.items():
            if x := efficiency.amount(board, row, axis):
                points[row] = x, score
        all_lines = efficiency.lines_of(board, list(points), axis)
        if not any(len({points[a][0] for a in rows}) > 1 for rows in all_lines.values()):
            continue
        for k, (teacher, chart_lines) in enumerate(_charts_of(all_lines)):
            methods = {name: rows[0].method for name, rows in chart_lines.items()}
            shown = _references_first(list(chart_lines), methods)[:MAX_LINES]
            line_colour = _line_colours(shown, methods, colour_by_method)
            drawn = [_line(n, [points[a] for a in chart_lines[n]], line_colour[n]) for n in shown]
            if scratch is not None:
                drawn.append(_level(view, scratch, scores[scratch], drawn))
            caption = f"Score against {label}{teacher}{_student_text(view, student)}"
            if len(chart_lines) > MAX_LINES:
                caption += f" ({MAX_LINES} of {len(chart_lines)} lines are shown)"
            unit = f"{label}{', s' if axis == 'seconds' else ''}, log scale"
            svg = lines(drawn, caption, unit, f"{compare.mean_name(columns)} x100", True)
            name = f"efficiency-{index}-{axis}" + (f"-{k}" if teacher else "")
            charts.append(Plot(name, "efficiency", "", student, caption, svg))
    return charts


def _charts_of(all_lines: dict[str, list[RowKey]]) -> list[tuple[str, dict[str, list[RowKey]]]]:
    """(end of the caption, lines) of each chart; lines without a teacher are in every chart."""
    teachers = sorted({rows[0].teacher for rows in all_lines.values()} - {""})
    if len(all_lines) <= MAX_LINES or len(teachers) < 2:
        return [("", all_lines)]
    return [
        (
            f" · {text.plain(teacher, 40)}",
            {name: rows for name, rows in all_lines.items() if rows[0].teacher in ("", teacher)},
        )
        for teacher in teachers
    ]


def _line(label: str, points: list[tuple[float, st.Estimate]], colour: int) -> Line:
    """A line through (budget, score) points, with their intervals."""
    points = sorted(points, key=lambda p: p[0])
    band = [
        (x, 100 * e.low, 100 * e.high)
        for x, e in points
        if e.low is not None and e.high is not None
    ]
    name = text.plain(label, 60)
    return Line(name, [(x, 100 * e.mean) for x, e in points], colour, band, marks=True)


def _level(view: BoardView, row: RowKey, score: st.Estimate, drawn: Sequence[Line]) -> Line:
    """A horizontal line at the score of `row`, as long as the chart's other lines."""
    xs = [x for line in drawn for x, _ in line.points]
    ends = (min(xs), max(xs))
    points = [(x, score) for x in ends]
    return replace(_line(view.labels[row], points, view.colour(row)), marks=False)


# Name of a curve in the records -> its name in charts. "val": the validation scores by which
# kdep_bench/transfer/classification.py selects the regularisation C of a linear probe.
_CURVE_NAMES = {"pretrain_loss": "loss", "val": "validation score"}
# Name of a curve in the records -> label of its x axis.
_X_LABELS = {"val": "log10 of regularisation C, or cross-validation fold"}


def _training(view: BoardView, complete_records: Sequence[Record]) -> list[Plot]:
    """One chart per recorded curve, such as the loss.

    A line is the mean over the seeds of a method, with a band from the smallest to the largest
    value.

    Pre-training has one chart for all tasks, because all tasks use the same networks.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Record]]] = defaultdict(dict)
    labels = {}  # label of a line -> its method
    for r in complete_records:
        for name in r.curves:
            task = "pre-training" if name.startswith("pretrain") else r.task.name
            rows = groups[r.student.name, task, name]
            fraction = f" · {100 * r.data.share:g} % data" if r.data.share < 1 else ""
            label = r.arm.method + fraction
            labels[label] = r.arm.method
            rows.setdefault(label, []).append(r)
    colour_by_method = {row.method: view.colour(row) for row in view.board.rows}
    charts = []
    shown_groups = sorted(groups.items())[:MAX_TRAINING_CHARTS]
    for j, ((student, task, name), rows) in enumerate(shown_groups):
        drawn = []
        shown = _references_first(sorted(rows), labels)[:MAX_LINES]
        colour = _line_colours(shown, labels, colour_by_method)
        for label in shown:
            line = _mean_curve([r.curves[name] for r in rows[label]])
            if line:
                points = [(x, y) for x, y, _, _ in line]
                # Bands of many methods would hide the lines.
                band = [(x, low, high) for x, _, low, high in line] if len(shown) <= 4 else []
                is_curve = name != "val"
                name_shown = text.plain(label, 40)
                drawn.append(
                    Line(name_shown, points, colour[label], band, not is_curve, joined=is_curve)
                )
        if not drawn:
            continue
        curve = text.plain(_CURVE_NAMES.get(name, name), 40)
        caption = f"{text.plain(task, 40)}: {curve}{_student_text(view, student)}"
        if len(rows) > MAX_LINES:
            caption += f" ({MAX_LINES} of {len(rows)} lines are shown)"
        ylabel = curve
        if task == "pre-training" and len(drawn) > 1:
            ylabel += " (its formula differs by method: not comparable)"
        xlabel = "step" if "loss" in name else _X_LABELS.get(name, "x")
        svg = lines(drawn, caption, xlabel, ylabel)
        charts.append(Plot(f"training-{j}", "training", "", student, caption, svg))
    return charts


def _references_first(lines_of_chart: list[str], methods: dict[str, str]) -> list[str]:
    """The names of the lines, KDEP and the references first; a chart may not show all lines."""
    return sorted(lines_of_chart, key=lambda name: methods[name] not in row_colours.FIXED)


def _line_colours(
    shown: list[str], methods: dict[str, str], colour_by_method: dict[str, int]
) -> dict[str, int]:
    """Line -> colour class, which also selects its dashes.

    It is the class of the line's method, or an unused class if another line of the chart has it.
    """
    colour: dict[str, int] = {}
    for label in shown:
        preferred = colour_by_method.get(methods[label], COLOURS - 1)
        used = set(colour.values())
        unused = [c for c in range(COLOURS - 1, -1, -1) if c not in used]
        colour[label] = unused[0] if preferred in used and unused else preferred
    return colour


def _mean_curve(curves: list[list[list[float]]]) -> list[tuple[float, float, float, float]]:
    """(x, mean, smallest, largest) of each point, over the seeds with the same x as the first seed.

    At most MAX_POINTS points are kept.
    """
    curves = [c for c in curves if c]
    if not curves:
        return []
    first = np.array(curves[0])
    same = [np.array(c) for c in curves if len(c) == len(first)]
    same = [c for c in same if np.array_equal(c[:, 0], first[:, 0])]
    y = np.stack([c[:, 1] for c in same])
    indices = np.unique(np.linspace(0, len(first) - 1, min(len(first), MAX_POINTS)).astype(int))
    table = np.stack([first[:, 0], y.mean(0), y.min(0), y.max(0)], 1)[indices]
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in table]


def per_class(
    view: BoardView, complete_records: Sequence[Record]
) -> list[tuple[str, list[str], list[tuple[RowKey, list[float | None]]]]]:
    """(task, classes, [(row, mean over seeds of each class)]) of every task with such scores."""
    by_id = {r.id: r for r in complete_records}
    tables = []
    for c, name in column_names(view.board.columns).items():
        rows = []
        classes: dict[str, None] = {}
        for row in view.board.rows:
            records = [by_id[r.id] for r in view.board.result(row, c).runs if r.id in by_id]
            scores: dict[str, list[float]] = defaultdict(list)
            for record in records:
                for key, value in record.per_class.items():
                    if value is not None and record.status == "ok":
                        scores[key].append(value)
            if scores:
                classes.update(dict.fromkeys(sorted(scores)))
                rows.append((row, scores))
        shown = list(classes)[:MAX_CLASSES]
        table = [(a, [_average(s.get(k)) for k in shown]) for a, s in rows]
        if table:
            tables.append((text.plain(name, 80), shown, table))
    return tables


def _average(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None

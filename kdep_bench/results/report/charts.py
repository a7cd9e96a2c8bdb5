"""Draws dots with intervals, and lines with bands, as SVG without a plotting library.

Colours are CSS classes (c0 ... c7), so the same drawing works on light and dark pages. `standalone`
adds the style for a separate file, and `png` renders that file. The drawing has no script, style
attribute or external reference, and fits the screen of a phone.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markupsafe import Markup

from kdep_bench.results.report.chart_axes import (
    BOLD,
    BOTTOM,
    CHAR,
    WIDTH,
    frame,
    number_text,
    padded_range,
    pixels,
    round_ticks,
    shorten_label,
    svg_chart,
    tick_text,
    x_axis,
    y_axis,
)
from kdep_bench.results.report.svg import join, tag

COLOURS = 8
# If a label is wider, in px, all labels are above their rows: shortened labels may look the same.
_MAX_SIDE_LABEL = 200.0


@dataclass(frozen=True, slots=True)
class Dot:
    """One row of a dot chart: a value, its interval, and the number of its colour class.

    `strong`: whether the row is bold.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    colour: int
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `points` (x, y), and `band` (x, low, high) of the points that have an interval.

    `marks`: whether each point has a dot. `joined`: whether a line joins the points.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    band: Sequence[tuple[float, float, float]] = field(default_factory=tuple)
    marks: bool = False
    joined: bool = True


def dots(
    rows: Sequence[Dot], title: str, xlabel: str, mark: float | None = None, mark_name: str = ""
) -> Markup:
    """A dot chart, one row per dot with its interval; `mark`: x value of a dashed vertical line."""
    widest = max(len(row.label) * (BOLD if row.strong else CHAR) for row in rows)
    labels_left = widest <= _MAX_SIDE_LABEL
    left = widest + 14 if labels_left else 8.0
    right, top, step = WIDTH - 14.0, 22.0, 22.0 if labels_left else 38.0
    ends = [v for row in rows for v in (row.low, row.value, row.high) if v is not None]
    low, high = padded_range(ends + ([mark] if mark is not None else []))

    def fx(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bottom = top + step * len(rows)
    parts: list[object] = []
    for t in round_ticks(low, high):
        x_px = pixels(fx(t))
        parts.append(tag("line", x1=x_px, x2=x_px, y1=top - 6, y2=pixels(bottom), class_="grid"))
        parts.append(tick_text(number_text(t), x_px, pixels(bottom + 15)))
    if mark is not None:
        x_px = pixels(fx(mark))
        parts.append(tag("line", x1=x_px, x2=x_px, y1=top - 6, y2=pixels(bottom), class_="mark"))
        # Near an edge of the chart the name is on the inner side of the line.
        anchor = "middle"
        if fx(mark) > right - 45:
            anchor = "end"
        elif fx(mark) < 45:
            anchor = "start"
        parts.append(tick_text(mark_name, x_px, 10, anchor))
    for i, row in enumerate(rows):
        y = top + step * (i + (0.5 if labels_left else 0.7))
        parts += _dot(row, left if labels_left else None, y, fx)
    centre = pixels((left + right) / 2)
    parts.append(tick_text(xlabel, centre, pixels(bottom + 31)))
    return svg_chart(bottom + 38, title, join(parts))


def _dot(row: Dot, left: float | None, y: float, fx: Callable[[float], float]) -> list[object]:
    """One row at height `y`; its label is left of `left`, or above the row if `left` is None.

    `fx`: function value -> pixels.
    """
    y_px = pixels(y)
    place = {"x": 8, "y": pixels(y - 10)}
    if left is not None:
        place = {"x": pixels(left - 8), "y": pixels(y + 4), "text_anchor": "end"}
    bold = "label strong" if row.strong else "label"
    shown = shorten_label(row.label, WIDTH - 12, BOLD if row.strong else CHAR)
    parts: list[object] = [tag("text", shown, class_=bold, **place)]
    colour = f"c{row.colour}"
    if row.low is not None and row.high is not None:
        left_end, right_end = fx(row.low), fx(row.high)
        whisker = f"M{pixels(left_end)} {y_px}H{pixels(right_end)}"
        for end in (left_end, right_end):
            whisker += f"M{pixels(end)} {pixels(y - 4)}V{pixels(y + 4)}"
        parts.append(tag("path", d=whisker, class_=f"whisker {colour}"))
    radius = 5 if row.strong else 4
    parts.append(tag("circle", cx=pixels(fx(row.value)), cy=y_px, r=radius, class_=f"dot {colour}"))
    return parts


def lines(
    series: Sequence[Line], title: str, xlabel: str, ylabel: str, log_x: bool = False
) -> Markup:
    """A line chart with a legend below; on a logarithmic axis, points with x <= 0 are left out."""
    drawn = []  # (line, the points of it that the axis can show)
    for line in series:
        points = [(x, y) for x, y in line.points if not log_x or x > 0]
        if points:
            drawn.append((line, points))
    if not drawn:
        return Markup("")
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    ys += [end for line, _ in drawn for _, low, high in line.band for end in (low, high)]
    fx, x_ticks = x_axis(xs, log_x)
    fy, y_ticks = y_axis(ys)
    parts = frame(fx, x_ticks, fy, y_ticks, (xlabel, ylabel))
    for line, points in drawn:
        parts += _line(line, points, fx, fy)
    legend, height = _legend([line for line, _ in drawn], BOTTOM + 52)
    return svg_chart(height, title, join([*parts, *legend]))


def _line(
    line: Line,
    points: list[tuple[float, float]],
    fx: Callable[[float], float],
    fy: Callable[[float], float],
) -> list[object]:
    """One line with its band and marks; `fx`, `fy`: functions value -> pixels."""
    parts: list[object] = []
    colour = f"c{line.colour}"
    band = [b for b in line.band if len(points) and b[0] >= min(a for a, _ in points)]
    if len(band) > 1:
        ring = [(a, h) for a, _, h in band] + [(a, low) for a, low, _ in reversed(band)]
        path = "M" + "L".join(f"{pixels(fx(a))} {pixels(fy(b))}" for a, b in ring) + "Z"
        parts.append(tag("path", d=path, class_=f"band {colour}"))
    if len(points) > 1 and line.joined:
        path = "M" + "L".join(f"{pixels(fx(a))} {pixels(fy(b))}" for a, b in points)
        parts.append(tag("path", d=path, class_=f"line {colour} d{line.colour}"))
    if line.marks or len(points) == 1:
        for a, low, high in band:
            whisker = f"M{pixels(fx(a))} {pixels(fy(low))}V{pixels(fy(high))}"
            parts.append(tag("path", d=whisker, class_=f"whisker {colour}"))
        for a, b in points:
            centre = {"cx": pixels(fx(a)), "cy": pixels(fy(b))}
            parts.append(tag("circle", r=4, class_=f"dot {colour}", **centre))
    return parts


def _legend(series: list[Line], top: float) -> tuple[list[object], float]:
    """(elements of the legend, height of the chart); `top`: y of its first line in pixels."""
    parts: list[object] = []
    first = 8.0
    x, y = first, top
    for line in series:
        label = shorten_label(line.label, WIDTH - 48)
        width = len(label) * CHAR + 40
        if x + width > WIDTH and x > first:
            x, y = first, y + 18
        swatch = f"M{pixels(x)} {pixels(y - 4)}h22"
        parts.append(tag("path", d=swatch, class_=f"line c{line.colour} d{line.colour}"))
        parts.append(tag("text", label, x=pixels(x + 27), y=pixels(y), class_="tick"))
        x += width
    return parts, y + 10


@cache
def _file_style() -> str:
    """chart.css with its light colours inlined: drawing programs do not support CSS variables."""
    css = Path(__file__).with_name("chart.css").read_text()
    css = re.sub(r"light-dark[(]([^,()]+),[^,()]+[)]", r"\1", css)
    values = dict(re.findall(r"(--[\w-]+):([^;}]+)", css))
    css = re.sub(r"--[\w-]+:[^;}]+;?", "", css)
    return re.sub(r"var[(](--[\w-]+)[)]", lambda m: values[m[1]], css)


def standalone(svg: Markup) -> str:
    """The chart as a separate SVG file: on white, with the page's chart styles included."""
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    inside = f"<style>{_file_style()}</style>\\1{paper}"
    return re.sub(r"(<title>.*?</title>)", inside, str(svg), count=1, flags=re.S) + "\n"


PNG_ZOOM = 2  # pixels of the PNG per pixel of the SVG


def png(drawing: str) -> bytes:
    """The drawing of `standalone` as PNG bytes at twice its size, rendered by resvg.

    The font is the DejaVu Sans that matplotlib includes, so that the file is the same on every
    machine; matplotlib itself is not imported.
    """
    import resvg_py

    return resvg_py.svg_to_bytes(
        svg_string=drawing,
        zoom=PNG_ZOOM,
        skip_system_fonts=True,
        font_files=_fonts(),
        font_family=_FACE,
        sans_serif_family=_FACE,
    )


_FACE = "DejaVu Sans"


@cache
def _fonts() -> list[str]:
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return [str(folder / f"DejaVuSans{kind}.ttf") for kind in ("", "-Bold")]

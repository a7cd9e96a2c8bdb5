"""Two kinds of SVG chart, written by hand: dots with intervals, and lines with bands.

Colours are CSS classes (c0 ... c7), so that one drawing serves light and dark pages; `standalone`
adds the style for a separate file, and `png` renders that file. No script, style attribute or
external reference. The drawing fits the screen of a phone.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markupsafe import Markup

from kdep_bench.results.report.svg import join, tag

WIDTH = 440
COLOURS = 8
# Mean width of a 12 px character of a wide face (DejaVu Sans), plain and bold, in px; labels are
# cut to what fits.
_CHAR, _BOLD = 7.0, 8.0
# Labels wider than this are placed above their row: shortened ones might all look the same.
_MAX_SIDE_LABEL = 200.0


@dataclass(frozen=True, slots=True)
class Dot:
    """One row of a dot chart: a value, its interval, the colour class number."""

    label: str
    value: float
    low: float | None
    high: float | None
    colour: int
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `points` (x, y), `band` (x, low, high) where there is an interval."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    band: Sequence[tuple[float, float, float]] = field(default_factory=tuple)
    marks: bool = False


def _ticks(low: float, high: float, goal: int = 5) -> list[float]:
    """Round numbers that cover [low, high]."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / goal))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= goal)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    ticks = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
        if low * 0.999 <= m * 10.0**e <= high * 1.001
    ]
    if len(ticks) < 3:  # less than a decade: round numbers serve
        return [t for t in _ticks(low, high, 4) if t > 0]
    return ticks if len(ticks) <= 8 else [t for t in ticks if f"{t:e}".startswith("1.")]


def _number(x: float) -> str:
    if x == 0:
        return "0"
    size = abs(x)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{x / scale:.4g}{unit}"
    return f"{x:.3g}" if size < 1000 else f"{x:.0f}"


def _cut(label: str, px: float, char: float = _CHAR) -> str:
    n_chars = max(4, int(px / char))
    return label if len(label) <= n_chars else label[: n_chars - 1] + "…"


def _round(x: float) -> str:
    return f"{x:.1f}".rstrip("0").rstrip(".")


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _svg(height: float, title: str, body: Markup, width: int = WIDTH) -> Markup:
    return tag(
        "svg",
        tag("title", title),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {_round(height)}",
        width=width,
        height=_round(height),
        role="img",
        class_="chart",
    )


def dots(
    rows: Sequence[Dot], title: str, unit: str, mark: float | None = None, mark_name: str = ""
) -> Markup:
    """A dot chart, one row per dot with its interval; `mark`: value of a dashed line."""
    widest = max(len(r.label) * (_BOLD if r.strong else _CHAR) for r in rows)
    labels_left = widest <= _MAX_SIDE_LABEL
    left = widest + 14 if labels_left else 8.0
    right, top, step = WIDTH - 14.0, 22.0, 22.0 if labels_left else 38.0
    ends = [v for r in rows for v in (r.low, r.value, r.high) if v is not None]
    low, high = _range(ends + ([mark] if mark is not None else []))

    def x(v: float) -> float:
        return left + (v - low) / (high - low) * (right - left)

    bottom = top + step * len(rows)
    parts: list[object] = []
    for t in _ticks(low, high):
        x_px = _round(x(t))
        parts.append(tag("line", x1=x_px, x2=x_px, y1=top - 6, y2=_round(bottom), class_="grid"))
        where = _round(bottom + 15)
        parts.append(tag("text", _number(t), x=x_px, y=where, class_="tick", text_anchor="middle"))
    if mark is not None:
        x_px = _round(x(mark))
        parts.append(tag("line", x1=x_px, x2=x_px, y1=top - 6, y2=_round(bottom), class_="mark"))
        side = "end" if x(mark) > right - 45 else "start" if x(mark) < 45 else "middle"
        parts.append(tag("text", mark_name, x=x_px, y=10, class_="tick", text_anchor=side))
    for i, r in enumerate(rows):
        parts += _dot(
            r, left if labels_left else None, top + step * (i + (0.5 if labels_left else 0.7)), x
        )
    end = _round((left + right) / 2)
    below = _round(bottom + 31)
    parts.append(tag("text", unit, x=end, y=below, class_="tick", text_anchor="middle"))
    return _svg(bottom + 38, title, join(parts))


def _dot(r: Dot, left: float | None, y: float, x) -> list[object]:
    """One row at height `y`; its label ends left of `left`, or is above it where that is None."""
    y_px = _round(y)
    place = {"x": 8, "y": _round(y - 10)}
    if left is not None:
        place = {"x": _round(left - 8), "y": _round(y + 4), "text_anchor": "end"}
    bold = "label strong" if r.strong else "label"
    shown = _cut(r.label, WIDTH - 12, _BOLD if r.strong else _CHAR)
    parts: list[object] = [tag("text", shown, class_=bold, **place)]
    colour = f"c{r.colour}"
    if r.low is not None and r.high is not None:
        a, b = x(r.low), x(r.high)
        whisker = f"M{_round(a)} {y_px}H{_round(b)}"
        for e in (a, b):
            whisker += f"M{_round(e)} {_round(y - 4)}V{_round(y + 4)}"
        parts.append(tag("path", d=whisker, class_=f"whisker {colour}"))
    radius = 5 if r.strong else 4
    parts.append(tag("circle", cx=_round(x(r.value)), cy=y_px, r=radius, class_=f"dot {colour}"))
    return parts


def lines(
    series: Sequence[Line], title: str, xlabel: str, ylabel: str, log_x: bool = False
) -> Markup:
    """A line chart with a legend below; on a logarithmic axis, points with x <= 0 are left out."""
    kept = [(s, [(a, b) for a, b in s.points if not log_x or a > 0]) for s in series if s.points]
    kept = [(s, p) for s, p in kept if p]
    if not kept:
        return Markup("")
    left, right, top, bottom = 46.0, WIDTH - 14.0, 24.0, 224.0
    xs = [a for _, p in kept for a, _ in p]
    ys = [b for _, p in kept for _, b in p] + [v for s, _ in kept for _, *e in s.band for v in e]
    y0, y1 = _range(ys)
    fx, x_ticks = _x_axis(xs, log_x, left, right)

    def fy(v: float) -> float:
        return bottom - (v - y0) / (y1 - y0) * (bottom - top)

    parts: list[object] = []
    for t in _ticks(y0, y1):
        px = fy(t)
        parts.append(tag("line", x1=left, x2=right, y1=_round(px), y2=_round(px), class_="grid"))
        parts.append(
            tag("text", _number(t), x=left - 6, y=_round(px + 4), class_="tick", text_anchor="end")
        )
    for t in x_ticks:
        px = _round(fx(t))
        parts.append(tag("line", x1=px, x2=px, y1=bottom, y2=bottom + 4, class_="axis"))
        where = bottom + 17
        parts.append(tag("text", _number(t), x=px, y=where, class_="tick", text_anchor="middle"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    middle = _round((left + right) / 2)
    below = bottom + 34
    parts.append(tag("text", xlabel, x=middle, y=below, class_="tick", text_anchor="middle"))
    parts.append(tag("text", ylabel, x=2, y=10, class_="tick"))
    for s, p in kept:
        parts += _line(s, p, fx, fy)
    legend, height = _legend([s for s, _ in kept], bottom + 52)
    return _svg(height, title, join([*parts, *legend]))


def _x_axis(xs: list[float], log_x: bool, left: float, right: float):
    if log_x:
        low, high = min(xs) / 1.15, max(xs) * 1.15
        scale = (right - left) / math.log(high / low)
        return lambda v: left + math.log(v / low) * scale, _log_ticks(low, high)
    low, high = min(xs), max(xs)
    if low == high:
        low, high = low - 1, high + 1
    scale = (right - left) / (high - low)
    return lambda v: left + (v - low) * scale, _ticks(low, high)


def _line(s: Line, points: list[tuple[float, float]], fx, fy) -> list[object]:
    parts: list[object] = []
    colour = f"c{s.colour}"
    band = [b for b in s.band if len(points) and b[0] >= min(a for a, _ in points)]
    if len(band) > 1:
        ring = [(a, h) for a, _, h in band] + [(a, low) for a, low, _ in reversed(band)]
        path = "M" + "L".join(f"{_round(fx(a))} {_round(fy(b))}" for a, b in ring) + "Z"
        parts.append(tag("path", d=path, class_=f"band {colour}"))
    if len(points) > 1:
        path = "M" + "L".join(f"{_round(fx(a))} {_round(fy(b))}" for a, b in points)
        parts.append(tag("path", d=path, class_=f"line {colour} d{s.colour}"))
    if s.marks or len(points) == 1:
        for a, low, high in band:
            whisker = f"M{_round(fx(a))} {_round(fy(low))}V{_round(fy(high))}"
            parts.append(tag("path", d=whisker, class_=f"whisker {colour}"))
        for a, b in points:
            centre = {"cx": _round(fx(a)), "cy": _round(fy(b))}
            parts.append(tag("circle", r=4, class_=f"dot {colour}", **centre))
    return parts


def _legend(series: list[Line], top: float) -> tuple[list[object], float]:
    parts: list[object] = []
    first = 8.0
    x, y = first, top
    for s in series:
        label = _cut(s.label, WIDTH - 48)
        width = len(label) * _CHAR + 40
        if x + width > WIDTH and x > first:
            x, y = first, y + 18
        swatch = f"M{_round(x)} {_round(y - 4)}h22"
        parts.append(tag("path", d=swatch, class_=f"line c{s.colour} d{s.colour}"))
        parts.append(tag("text", label, x=_round(x + 27), y=_round(y), class_="tick"))
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


PNG_ZOOM = 2


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

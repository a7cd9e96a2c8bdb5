"""Axes, ticks and labels of charts."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from kdep_bench.results.report.svg import tag

WIDTH = 440
# Mean width, in px, of a 12 px character of a wide font (DejaVu Sans), plain and bold; labels are
# shortened to the available width.
CHAR, BOLD = 7.0, 8.0
# Edges, in px, of the area that a chart with two axes draws in.
LEFT, RIGHT, TOP, BOTTOM = 46.0, WIDTH - 14.0, 24.0, 224.0


def round_ticks(low: float, high: float, goal: int = 5) -> list[float]:
    """At most `goal` + 1 round numbers in [low, high], equally spaced."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / goal))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= goal)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis."""
    ticks = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
        if low * 0.999 <= m * 10.0**e <= high * 1.001
    ]
    if len(ticks) < 3:  # the range is less than a decade
        return [t for t in round_ticks(low, high, 4) if t > 0]
    return ticks if len(ticks) <= 8 else [t for t in ticks if f"{t:e}".startswith("1.")]


def number_text(x: float) -> str:
    """The text of the number at a tick."""
    if x == 0:
        return "0"
    size = abs(x)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{x / scale:.4g}{unit}"
    return f"{x:.3g}" if size < 1000 else f"{x:.0f}"


def shorten_label(label: str, width: float, char: float = CHAR) -> str:
    """The label, shortened to `width` pixels if necessary; `char`: width of a character."""
    n_chars = max(4, int(width / char))
    return label if len(label) <= n_chars else label[: n_chars - 1] + "…"


def pixels(x: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{x:.1f}".rstrip("0").rstrip(".")


def padded_range(values: list[float]) -> tuple[float, float]:
    """Smallest and largest value with a margin."""
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def svg_chart(height: float, title: str, body: Markup, width: int = WIDTH) -> Markup:
    """The <svg> element of a chart; `body`: its content."""
    return tag(
        "svg",
        tag("title", title),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {pixels(height)}",
        width=width,
        height=pixels(height),
        role="img",
        class_="chart",
    )


def x_axis(
    xs: list[float], log_x: bool, left: float = LEFT, right: float = RIGHT
) -> tuple[Callable[[float], float], list[float]]:
    """(function value -> pixels, ticks) of a horizontal axis that covers the values `xs`."""
    if log_x:
        low, high = min(xs) / 1.15, max(xs) * 1.15
        scale = (right - left) / math.log(high / low)
        return lambda v: left + math.log(v / low) * scale, log_ticks(low, high)
    low, high = min(xs), max(xs)
    if low == high:
        low, high = low - 1, high + 1
    scale = (right - left) / (high - low)
    return lambda v: left + (v - low) * scale, round_ticks(low, high)


def tick_text(text: str, x: object, y: object, anchor: str = "middle") -> Markup:
    """A number or the label of an axis."""
    return tag("text", text, x=x, y=y, class_="tick", text_anchor=anchor)


def frame(
    fx: Callable[[float], float],
    x_ticks: list[float],
    fy: Callable[[float], float],
    y_ticks: list[float],
    labels: tuple[str, str],
) -> list[object]:
    """Grid, ticks and labels of both axes.

    `fx`, `fy`: functions value -> pixels. `labels`: (label of the x axis, label of the y axis).
    """
    parts: list[object] = []
    for t in y_ticks:
        y = pixels(fy(t))
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tick_text(number_text(t), LEFT - 6, pixels(fy(t) + 4), "end"))
    for t in x_ticks:
        x = pixels(fx(t))
        parts.append(tag("line", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4, class_="axis"))
        parts.append(tick_text(number_text(t), x, BOTTOM + 17))
    parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    parts.append(tick_text(labels[0], pixels((LEFT + RIGHT) / 2), BOTTOM + 34))
    parts.append(tag("text", labels[1], x=2, y=10, class_="tick"))
    return parts


def y_axis(ys: list[float]) -> tuple[Callable[[float], float], list[float]]:
    """(function value -> pixels, ticks) of a vertical axis that covers the values `ys`."""
    low, high = padded_range(ys)
    return lambda v: BOTTOM - (v - low) / (high - low) * (BOTTOM - TOP), round_ticks(low, high)

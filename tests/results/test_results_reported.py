"""Figure 1 of the KDEP paper: its points are drawn, its speed-up of 5 is recomputed, and no
statistic uses them."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pytest
from make_records import grid

from kdep_bench.results import build
from kdep_bench.results.board import efficiency
from kdep_bench.results.board.board import make_board
from kdep_bench.results.records import store
from kdep_bench.results.report import board_rows, markdown, reported
from kdep_bench.results.report.charts import Line, lines


def curve(method: str, share: float) -> list[tuple[float, float]]:
    """Reported points (hours, top-1) of a method and data fraction."""
    return [
        (r.hours, r.top1) for r in reported.FIGURE_1 if (r.method, r.fraction) == (method, share)
    ]


def speed_up(margin: float) -> float:
    """Time of supervised pre-training divided by the time in which KDEP with 10 % of the data
    reaches the same score plus `margin` points."""
    points = curve("kdep", 0.1)
    hours, goal = curve("supervised", 1.0)[-1]
    log_hours = [math.log(h) for h, _ in points]
    reached = efficiency.log_budgets_at_goal(
        log_hours, [{(0, 0): y} for _, y in points], {(0, 0): goal}, margin
    )
    return hours / math.exp(reached[0, 0])


def test_the_reported_speed_up_of_5_is_recomputed() -> None:
    """KDEP scores 77.07 after 8 h, supervised 77.13 after 40 h: a factor of 5 with a margin of 0.1
    points, 4.6 without a margin."""
    assert speed_up(margin=-0.1) == pytest.approx(5.0, rel=0.1)
    exact = 8 * 5 ** ((77.13 - 77.07) / (78.21 - 77.07))
    assert speed_up(margin=0.0) == pytest.approx(40 / exact)
    assert round(speed_up(margin=0.0)) == 5


def test_the_figure_is_drawn_from_the_reported_points() -> None:
    series: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for row in reported.FIGURE_1:
        series[row.method, row.fraction].append((row.hours, row.top1))
    drawn = [
        Line(f"{m}, {100 * s:g} %", points, i, marks=True)
        for i, ((m, s), points) in enumerate(sorted(series.items()))
    ]
    svg = str(lines(drawn, "Figure 1 (reported)", "hours, log scale", "mean top-1 x100", True))
    assert len(series) == 6
    assert svg.count("<circle") == len(reported.FIGURE_1) == 16
    for label in ("kdep, 10 %", "supervised, 100 %", "conv1x1, 10 %"):
        assert label in svg


def test_reported_rows_are_shown_but_used_in_no_statistic(tmp_path: Path) -> None:
    for folder, tasks in (("full", sorted(reported.TASKS)), ("pocket", ["probe", "seg"])):
        scores = {m: {t: [0.4, 0.5, 0.6] for t in tasks} for m in ("kdep", "supervised")}
        for record in grid(scores):
            store.write(tmp_path / folder, record)
        build(tmp_path / folder)
    full, pocket = ((tmp_path / f / "leaderboard.md").read_text() for f in ("full", "pocket"))
    assert full.count("(reported)") == len(reported.FIGURE_1)
    assert "2203.05180" in full
    assert "(reported)" not in pocket
    assert "78.40" not in (tmp_path / "full" / "leaderboard.csv").read_text()
    page = (tmp_path / "full" / "index.html").read_text()
    assert page.count("(reported)") == len(reported.FIGURE_1)
    board = make_board(store.read(tmp_path / "full"))
    without = markdown.markdown(board_rows.make_view(board)).split("## Reported")[0]
    assert "78.40" not in without

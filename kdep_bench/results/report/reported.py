"""Scores that the KDEP paper reports. They have a separate table and enter no statistic.

They are from Figure 1, as shown in the public repository CVMI-Lab/KDEP. (The paper's tables were
not accessible.)
"""

from __future__ import annotations

from typing import NamedTuple

from kdep_bench.results.board.board import Board

SOURCE = (
    "He et al., CVPR 2022 (KDEP), arXiv 2203.05180, Figure 1 as shown in the repository "
    "CVMI-Lab/KDEP: mean top-1 over CIFAR-100, CUB-200, DTD and Caltech-256. Its caption does not "
    "name the student and the teacher. The hours are read off the axis. The public code reports "
    "the best epoch on the test set, and the tables above the last epoch, so the two cannot be "
    "compared."
)
#: The tasks whose mean Figure 1 shows. A leaderboard with all of them has the table.
TASKS = frozenset({"cifar100", "cub200", "dtd", "caltech256"})


class ReportedScore(NamedTuple):
    """One point of Figure 1: method, data fraction, approximate hours, mean top-1 in percent."""

    method: str
    fraction: float
    hours: float
    top1: float


FIGURE_1 = (
    ReportedScore("supervised", 0.1, 4, 71.05),
    ReportedScore("supervised", 0.1, 8, 71.60),
    ReportedScore("supervised", 0.1, 40, 72.44),
    ReportedScore("supervised", 1.0, 4, 72.91),
    ReportedScore("supervised", 1.0, 8, 74.81),
    ReportedScore("supervised", 1.0, 40, 77.13),
    ReportedScore("logit_kd", 0.1, 4, 71.95),
    ReportedScore("logit_kd", 0.1, 8, 73.63),
    ReportedScore("conv1x1", 0.1, 4, 73.10),
    ReportedScore("conv1x1", 0.1, 8, 74.02),
    ReportedScore("kdep", 0.1, 4, 75.74),
    ReportedScore("kdep", 0.1, 8, 77.07),
    ReportedScore("kdep", 0.1, 40, 78.21),
    ReportedScore("kdep", 1.0, 4, 76.23),
    ReportedScore("kdep", 1.0, 8, 77.33),
    ReportedScore("kdep", 1.0, 40, 78.40),
)
HEAD = ["method", "data fraction", "training time, approx.", "mean top-1 x100"]


def rows_for(board: Board) -> tuple[ReportedScore, ...]:
    """The rows of Figure 1 if the board has all `TASKS`, otherwise none."""
    return FIGURE_1 if {c.task for c in board.columns} >= TASKS else ()


def entries(row: ReportedScore) -> list[str]:
    """The entries of a row under HEAD; the score is marked as reported."""
    return [
        row.method,
        f"{100 * row.fraction:g} %",
        f"{row.hours:g} h",
        f"{row.top1:.2f} (reported)",
    ]

"""Score against budget, and how much less of a budget one method needs for another's score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdep_bench.results import statistics as st
from kdep_bench.results.compare import columns_of, complete_rows
from kdep_bench.results.table import ArmKey, Board, Column, arm_facts

Axis = Literal["images", "images_seen", "seconds", "flops", "flops_without_teacher"]
AXES: dict[Axis, str] = {
    "images": "images",
    "images_seen": "images seen",
    "seconds": "pre-training time (teacher cache included)",
    "flops": "compute (teacher included)",
    "flops_without_teacher": "compute (teacher left out)",
}
# A backward pass costs about two forward passes (Kaplan et al. 2020, section 2.1).
FORWARD_AND_BACKWARD = 3


def amount(board: Board, arm: ArmKey, axis: Axis) -> float | None:
    """How much of `axis` the arm's pre-training took; None where it is not known or nothing."""
    run = next((r for r in board.runs_of(arm) if r.status == "ok"), None)
    if run is None:
        return None
    facts = arm_facts(board, arm)
    if axis == "seconds":
        value = facts.cost_s
    elif axis == "images":
        value = run.data.images if board_pretrained(board, arm) else None
    elif axis == "images_seen":
        value = run.budget.images_seen
    else:
        value = _flops(run.budget.images_seen, facts.student.flops)
        if axis == "flops" and value is not None and facts.teacher is not None:
            forwards = _cached(run.data.images, run.budget.views)
            teacher = facts.teacher.flops
            value = None if teacher is None or forwards is None else value + teacher * forwards
    return float(value) if value else None


def board_pretrained(board: Board, arm: ArmKey) -> bool:
    """Whether the arm is pre-trained here."""
    return not board.fixed(arm)


def _flops(images_seen: int | None, forward: float | None) -> float | None:
    if images_seen is None or forward is None:
        return None
    return images_seen * forward * FORWARD_AND_BACKWARD


def _cached(images: int | None, views: int | None) -> int | None:
    return None if images is None or views is None else images * views


@dataclass(frozen=True, slots=True)
class Saving:
    """log(b's amount / a's amount at b's score) by seed pair. `at_least`: some are lower bounds
    (a's smallest budget suffices); `at_most`: some are upper bounds (a's largest does not)."""

    log_ratios: dict[st.Key, float]
    at_least: bool
    at_most: bool

    @property
    def estimate(self) -> st.Estimate:
        """The logarithm of the ratio, with its interval."""
        return st.estimate(self.log_ratios)

    @property
    def bound(self) -> str:
        """'at least', 'at most', 'beyond both ends:' or, for a plain ratio, ''."""
        words = ("", "at most", "at least", "beyond both ends:")
        return words[2 * self.at_least + self.at_most]


def saving(
    board: Board,
    curve: list[ArmKey],
    goal: ArmKey,
    columns: list[Column],
    axis: Axis,
    margin: float = 0.0,
) -> Saving | None:
    """How much less of `axis` the arms of `curve` need to reach the score of `goal` + `margin`.

    Per seed pair the score, a mean over `columns`, is made monotone (running maximum) and
    interpolated linearly in log(axis). None where `curve` has fewer than two known amounts.
    """
    amounts = {a: x for a in curve if (x := amount(board, a, axis))}
    reference = amount(board, goal, axis)
    arms = sorted(amounts, key=lambda a: (amounts[a], a.order()))
    if reference is None or len({amounts[a] for a in arms}) < 2:
        return None
    scores = [st.mean_over([_signed(board, a, c) for c in columns]) for a in [*arms, goal]]
    if not set(scores[0]).intersection(*scores[1:]):
        return None
    reached = reaches([math.log(amounts[a]) for a in arms], scores[:-1], scores[-1], margin)
    at_least = at_most = False
    for key in reached:
        y = [s[key] for s in scores[:-1]]
        target = scores[-1][key] + margin
        at_least |= y[0] >= target
        at_most |= max(y) < target
    return Saving({k: math.log(reference) - v for k, v in reached.items()}, at_least, at_most)


def reaches(
    logs: Sequence[float], curve: Sequence[st.Values], goal: st.Values, margin: float = 0.0
) -> dict[st.Key, float]:
    """log(amount) at which `curve` reaches the score of `goal` + `margin`, by seed pair.

    Args:
        logs: log(amount) of each point of the curve, rising.
        curve: the scores of each point by seed pair, larger is better.
    """
    found: dict[st.Key, float] = {}
    for key in sorted(set(goal).intersection(*curve)):
        y = np.maximum.accumulate([s[key] for s in curve])
        found[key] = _reach(np.asarray(logs), y, goal[key] + margin)
    return found


def savings(board: Board, student: str) -> list[tuple[str, ArmKey, Axis, Saving]]:
    """(method, the arm whose score it reaches, axis, saving) of every method with a curve, over
    all of the student's tasks, against supervised pre-training at its largest budget."""
    columns = columns_of(board, student)
    whole = complete_rows(board, student)
    goals = [a for a in whole if a.method == "supervised"]
    if not goals:
        return []
    goal = max(goals, key=lambda a: (a.share, a.epochs or 0.0, a.teacher))
    found = []
    for method in sorted({a.method for a in whole} - {goal.method}):
        curve = [a for a in whole if a.method == method]
        for axis in AXES:
            got = saving(board, curve, goal, columns, axis)
            if got is not None:
                found.append((method, goal, axis, got))
    return found


def _signed(board: Board, arm: ArmKey, column: Column) -> dict[st.Key, float]:
    return {k: column.sign * v for k, v in board.values(arm, column).items()}


def _reach(logs: np.ndarray, y: np.ndarray, target: float) -> float:
    """log(amount) where the rising curve `y` first reaches `target`; its ends where it lies
    outside."""
    i = int(np.searchsorted(y, target, side="left"))
    if i == 0:
        return float(logs[0])
    if i == len(y):
        return float(logs[-1])
    share = (target - y[i - 1]) / (y[i] - y[i - 1])
    return float(logs[i - 1] + share * (logs[i] - logs[i - 1]))

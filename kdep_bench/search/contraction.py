"""Contraction of a large student: step by step to smaller ones, until it is within the limits.

A contraction starts from the largest student of the space, the parent. Every step lowers the limits
by the same factor; those of the last step are the limits of the search. Candidates of a step are
the largest students within its limits that have no dimension above the parent's. Some of them are
trained and scored; the best is the parent of the next step. Proposals depend only on the seed and
the earlier trials.

Source: re-implementation of the contraction of TinyViT (Wu et al., ECCV 2022, section 3.2): depth,
width and other factors of a large network are reduced under limits, and the best candidate of a
step is the start of the next. The limits are parameters and, instead of the paper's throughput,
FLOPs. Two choices are this project's: the schedule of the limits, and that only the largest
students within the limits are candidates. No student inherits weights.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, text_hash
from kdep_bench.search.log import Trial, best
from kdep_bench.students.space import STUDENT, Json, Limits, Size, Space


def check_space(space: Space, limits: Limits, steps: int, trials: int, rungs: int) -> None:
    """Raises KdepError if a search cannot be a contraction.

    Args:
        space: its dimensions.
        limits: the limits of the last step.
        steps: number of steps.
        trials: number of trials of the search, the same number in every step.
        rungs: rungs of its successive halving.
    """
    for dimension in space.dimensions:
        if not (dimension.key.startswith(f"{STUDENT}.") and dimension.ordered):
            raise KdepError(
                f"the dimension {dimension.key!r} cannot be contracted",
                expected="a dimension of the student, with numbers in ascending order",
                fix="remove it from `space` (an argument of the family can be set in `family`)",
            )
    if trials % steps or trials < steps:
        raise KdepError(
            f"a contraction in {steps} steps has {trials} trials",
            expected="a multiple of `steps`, the same number of candidates in every step",
            fix="correct `trials` or `steps` in the search's config",
        )
    if rungs != 1:
        raise KdepError(
            f"a contraction has halving with {rungs} rungs",
            expected="rungs=1: all candidates of a step are trained for the same epochs",
            fix="set halving=dict(epochs=..., rungs=1) in the search's config",
        )
    size = space.member(largest(space)).size()
    if limits.allow(size):
        raise KdepError(
            f"the largest student of the space has {size}, which is within the limits of {limits}",
            expected="a largest student above the limits, which is contracted",
            fix="lower `limits` in the search's config, or add larger values to its space",
        )


def largest(space: Space) -> Json:
    """The proposal with the last value of every dimension."""
    return {d.key: d.values[-1] for d in space.dimensions}


def limits_of_step(first: Size, final: Limits, step: int, steps: int) -> Limits:
    """The limits of a step, from 1 to `steps`; those of the last step are `final`.

    Each step multiplies a limit by the same factor. `first`: size of the first parent.
    """

    def limit(start: int, end: int | None) -> int | None:
        if end is None or step == steps:
            return end
        return max(end, math.floor(start * (end / start) ** (step / steps)))

    return Limits(limit(first.params, final.params), limit(first.flops, final.flops))


def candidates(space: Space, parent: Json, limits: Limits) -> list[Json]:
    """The largest students within the limits whose values are at most those of `parent`.

    A student is left out if one of its dimensions could be raised to the next value, at most the
    parent's, within the limits.

    Raises:
        KdepError: no student is within the limits.
    """
    tops = [list(d.values).index(parent[d.key]) for d in space.dimensions]

    def proposal(indices: Sequence[int]) -> Json:
        return {d.key: d.values[i] for d, i in zip(space.dimensions, indices, strict=True)}

    within = {
        indices
        for indices in itertools.product(*(range(top + 1) for top in tops))
        if limits.allow(space.member(proposal(indices)).size())
    }
    if not within:
        raise KdepError(
            f"no contraction of the student {parent} is within the limits of {limits}",
            fix="raise `limits` in the search's config, or add smaller values to its space",
        )

    def can_grow(indices: tuple[int, ...]) -> bool:
        raised = ((*indices[:k], i + 1, *indices[k + 1 :]) for k, i in enumerate(indices))
        return any(larger in within for larger in raised)

    return [proposal(indices) for indices in sorted(within) if not can_grow(indices)]


@dataclass
class Contraction:
    """Proposes the candidates of every step; the interface is that of `sampler.Sampler`.

    Attributes:
        space: the dimensions, all of the student.
        final: limits of the last step.
        seed: seed of the choice among the candidates of a step.
        steps: number of steps.
        per_step: largest number of candidates that are trained in a step.
        direction: whether the largest score is best ("max") or the smallest ("min").
        step: number of the current step, from 1; 0 before the first proposal.
    """

    space: Space
    final: Limits
    seed: int
    steps: int
    per_step: int
    direction: Literal["max", "min"]
    step: int = 0
    _parent: Json = field(default_factory=dict)
    _pending: list[Json] = field(default_factory=list)
    _trials: list[Trial] = field(default_factory=list)

    @property
    def limits(self) -> Limits:
        """The limits of the current step."""
        first = self.space.member(largest(self.space)).size()
        return limits_of_step(first, self.final, max(1, self.step), self.steps)

    @property
    def is_finished(self) -> bool:
        """Whether all candidates of the last step have been proposed."""
        return self.step == self.steps and not self._pending

    def propose(self) -> Json:
        """The next candidate of the current step, or the first of the next step."""
        if not self._pending:
            self._begin_step()
        return self._pending.pop(0)

    def _begin_step(self) -> None:
        """Takes the best candidate of the ended step as the parent; chooses the next candidates."""
        if self.step == 0:
            self._parent = largest(self.space)
        else:
            chosen = best(self._trials, {"direction": self.direction})
            if chosen is None:
                raise KdepError(
                    f"all {len(self._trials)} candidates of step {self.step} of the contraction "
                    "failed",
                    fix="correct the cause of the errors in the log, and start a new log with "
                    "--log",
                )
            self._parent = chosen.proposal
        self.step, self._trials = self.step + 1, []
        allowed = candidates(self.space, self._parent, self.limits)
        # Not numpy: its generators may give other numbers in another version.
        generator = random.Random(text_hash(f"{self.seed} {self.step}"))
        self._pending = generator.sample(allowed, min(self.per_step, len(allowed)))

    def continues(self, rung: int, score: float) -> bool:
        """Whether a trial continues after a rung: always, as there is only one."""
        return True

    def finish(self, trial: Trial) -> None:
        """Adds the result of the current trial to the step."""
        self._trials.append(trial)

    def repeat(self, trial: Trial) -> None:
        """Adds a trial of the log, without training, as if it had just been proposed and run.

        Raises:
            KdepError: the trial is not the next candidate.
        """
        expected = None if self.is_finished else self.propose()
        if expected != trial.proposal:
            raise KdepError(
                f"trial {trial.trial} of the log has the proposal "
                f"{canonical_json(trial.proposal)}, which is not the next candidate of the "
                "contraction",
                expected="no further trial" if expected is None else canonical_json(expected),
                fix="restore the log from a copy, or name another file with --log",
            )
        self.finish(trial)

    def description(self) -> list[str]:
        """One line of text per step, with its limits."""
        first = self.space.member(largest(self.space)).size()
        return [
            f"step {step}: at most {self.per_step} candidates within "
            f"{limits_of_step(first, self.final, step, self.steps)}"
            for step in range(1, self.steps + 1)
        ]

"""Proposals and early stopping of a search, by optuna.

Proposals depend only on the seed and the earlier trials: the random generator is seeded for every
trial, and earlier trials are read from the search's log. A resumed search therefore makes the same
proposals as an uninterrupted one. optuna is imported when the first Sampler is made.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any, Literal

from kdep_bench.errors import KdepError
from kdep_bench.files import text_hash
from kdep_bench.search.log import Trial
from kdep_bench.students.space import Dimension, Json, Limits, Space


def version() -> str:
    """The version of optuna, on which proposals depend; KdepError if it is not installed."""
    try:
        return metadata.version("optuna")
    except metadata.PackageNotFoundError:
        raise KdepError(
            "a search needs optuna, which is not installed",
            fix="install it: pip install 'kdep_bench[search]'",
        ) from None


class Sampler:
    """An optuna study: proposes values, and decides which trials continue.

    Trials are stopped by asynchronous successive halving (Jamieson and Talwalkar, AISTATS 2016; Li
    et al., MLSys 2020): a trial continues to the next rung if it is the best, or among the best
    1 / `factor`, of the trials that were scored at its rung so far.

    Args:
        space: the dimensions.
        name: "tpe" (tree-structured Parzen estimator, Bergstra et al., NeurIPS 2011) or "random".
        seed: seed of the proposals.
        factor: ratio of the budgets of successive rungs.
        direction: whether the largest score is best ("max") or the smallest ("min").
        limits: largest size of a student that is trained.
    """

    is_finished = False  # there is always another proposal

    def __init__(
        self,
        space: Space,
        name: str,
        seed: int,
        factor: int,
        direction: Literal["max", "min"],
        limits: Limits,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self.space, self.name, self.seed, self.factor = space, name, seed, factor
        self.limits = limits
        self._study = self._optuna.create_study(
            direction={"max": "maximize", "min": "minimize"}[direction],
            sampler=self._seeded(0),
            pruner=self._optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=max(2, factor)
            ),
        )
        self._distributions = {d.key: self._distribution(d) for d in space.dimensions}
        self._trial: Any = None

    def _distribution(self, dimension: Dimension) -> Any:
        """optuna's distribution over the indices of a dimension's values."""
        distributions, count = self._optuna.distributions, len(dimension.values)
        if dimension.ordered:
            return distributions.IntDistribution(0, count - 1)
        return distributions.CategoricalDistribution(tuple(range(count)))

    def _seeded(self, number: int) -> Any:
        """optuna's sampler for the trial with this number."""
        seed = int(text_hash(f"{self.seed} {number}", 8), 16)
        if self.name == "random":
            return self._optuna.samplers.RandomSampler(seed=seed)
        return self._optuna.samplers.TPESampler(seed=seed)

    def propose(self) -> Json:
        """The proposal of the next trial: {key of a dimension: value}."""
        self._study.sampler = self._seeded(len(self._study.get_trials(deepcopy=False)))
        self._trial = self._study.ask(self._distributions)
        return {d.key: d.values[self._trial.params[d.key]] for d in self.space.dimensions}

    def continues(self, rung: int, score: float) -> bool:
        """Whether the current trial, with this score at `rung` (from 0), continues after it."""
        self._trial.report(score, step=self.factor**rung)
        return not self._trial.should_prune()

    def finish(self, trial: Trial) -> None:
        """Ends the current trial.

        A failed trial, or one above the limits, has no influence on the values of later proposals.
        """
        states = self._optuna.trial.TrialState
        if trial.state == "complete":
            self._study.tell(self._trial, trial.score)
        else:
            is_pruned = trial.state == "pruned"
            self._study.tell(self._trial, state=states.PRUNED if is_pruned else states.FAIL)
        self._trial = None

    def repeat(self, trial: Trial) -> None:
        """Adds a trial of the log to the study, without training.

        Raises:
            KdepError: a value of the trial is not in the space.
        """
        try:
            indices = {
                d.key: list(d.values).index(trial.proposal[d.key]) for d in self.space.dimensions
            }
        except (KeyError, ValueError):
            raise KdepError(
                f"trial {trial.trial} of the log has the proposal {trial.proposal}, which is not "
                "in the space of the search",
                fix="restore the log from a copy, or name another file with --log",
            ) from None
        self._study.enqueue_trial(indices)
        self._trial = self._study.ask(self._distributions)
        # The score of a complete trial is reported by `finish`.
        scores = trial.scores[:-1] if trial.state == "complete" else trial.scores
        for rung, score in enumerate(scores):
            self.continues(rung, score)
        self.finish(trial)

"""Proposals and early stopping by optuna, as a function of the seed and the earlier trials.

The sampler's generator is seeded again for every trial, and an earlier trial enters by the values
in the search's log. So a search that continues from its log proposes what an uninterrupted one
does. optuna is imported with the first Sampler.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any, Literal

from kdep_bench.errors import KdepError
from kdep_bench.files import text_hash
from kdep_bench.search.log import Trial
from kdep_bench.students.space import Dimension, Json, Space

NAMES = ("tpe", "random")


def version() -> str:
    """The version of optuna, as another one can propose otherwise. KdepError if it is missing."""
    try:
        return metadata.version("optuna")
    except metadata.PackageNotFoundError:
        raise KdepError(
            "a search needs optuna, which is not installed",
            fix="install it: pip install 'kdep_bench[search]'",
        ) from None


class Sampler:
    """One study.

    Successive halving (Jamieson and Talwalkar, AISTATS 2016) in its asynchronous form (Li et al.,
    MLSys 2020): of the trials that were scored at a rung so far, those among the best 1 / `factor`
    continue to the next rung.

    Args:
        space: the dimensions.
        name: "tpe" (tree-structured Parzen estimator, Bergstra et al., NeurIPS 2011) or "random".
        seed: of the proposals.
        factor: ratio of the budgets of two rungs.
        direction: whether the largest score is best ("max") or the smallest ("min").
    """

    def __init__(
        self, space: Space, name: str, seed: int, factor: int, direction: Literal["max", "min"]
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self.space, self.name, self.seed, self.factor = space, name, seed, factor
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
        """Over positions in the list of values; ordered where neighbours are similar."""
        distributions, count = self._optuna.distributions, len(dimension.values)
        if dimension.ordered:
            return distributions.IntDistribution(0, count - 1)
        return distributions.CategoricalDistribution(tuple(range(count)))

    def _seeded(self, number: int) -> Any:
        seed = int(text_hash(f"{self.seed} {number}", 8), 16)
        if self.name == "random":
            return self._optuna.samplers.RandomSampler(seed=seed)
        return self._optuna.samplers.TPESampler(seed=seed)

    def propose(self) -> Json:
        """The values of the next trial, by key of their dimension."""
        self._study.sampler = self._seeded(len(self._study.get_trials(deepcopy=False)))
        self._trial = self._study.ask(self._distributions)
        return {d.key: d.values[self._trial.params[d.key]] for d in self.space.dimensions}

    def continues(self, rung: int, score: float) -> bool:
        """Whether the current trial, with this score at rung 0, 1, ..., continues to the next."""
        self._trial.report(score, step=self.factor**rung)
        return not self._trial.should_prune()

    def finish(self, trial: Trial) -> None:
        """Ends the current trial; one without a score does not guide later proposals."""
        states = self._optuna.trial.TrialState
        if trial.state == "complete":
            self._study.tell(self._trial, trial.score)
        else:
            pruned = trial.state == "pruned"
            self._study.tell(self._trial, state=states.PRUNED if pruned else states.FAIL)
        self._trial = None

    def repeat(self, trial: Trial) -> None:
        """Enters a trial of the log in place of a proposal.

        Raises:
            KdepError: its values are not in the space.
        """
        try:
            positions = {
                d.key: list(d.values).index(trial.proposal[d.key]) for d in self.space.dimensions
            }
        except (KeyError, ValueError):
            raise KdepError(
                f"trial {trial.trial} of the log has the proposal {trial.proposal}, which is not "
                "in the space of the search",
                fix="restore the log from a copy, or give another file with --log",
            ) from None
        self._study.enqueue_trial(positions)
        self._trial = self._study.ask(self._distributions)
        last = len(trial.scores) - (trial.state == "complete")
        for rung, score in enumerate(trial.scores[:last]):
            self.continues(rung, score)
        self.finish(trial)

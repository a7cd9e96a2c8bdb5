"""Accuracy from a few labelled images per class: logistic regression on normalised features."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdep_bench.bounds import Count, Counts, Positives
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value, top1, unit


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` images of every class; those of fewer shots are among them.

    KdepError for a class that has fewer.
    """
    rng = np.random.default_rng([seed, 5])
    chosen = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        if len(members) < shots:
            raise KdepError(
                f"{shots} training images per class are asked for, but class number {c} has "
                f"{len(members)}",
                fix=f"lower `shots` in the probe's config to {len(members)}, or add images",
            )
        chosen.append(rng.permutation(members)[:shots])
    return np.concatenate(chosen)


class FewShot(Probe):
    """Top-1 accuracy with 1, 2, 4, ... training images per class, averaged over `draws` draws.

    Features are divided by their length, then classified by logistic regression, as by Tian et al.,
    ECCV 2020 ("Rethinking few-shot image classification: a good embedding is all you need?"). For
    every number of shots, C is the one with the best mean accuracy on the validation split over all
    draws. The draws are the same for every backbone.

    Args:
        shots: training images per class.
        draws: random draws of these images.
        c_grid: values of C to choose from.
        max_iter: steps of the solver.
    """

    reads = frozenset({"classes"})
    splits = ("train", "val", "test")
    shots_argument = "shots"

    def __init__(
        self,
        shots: Counts,
        draws: Count = 10,
        c_grid: Positives = (1.0, 10.0, 100.0),
        max_iter: Count = 200,
    ) -> None:
        self.numbers, self.draws = sorted(shots), int(draws)
        self.c_grid, self.max_iter = sorted(c_grid), int(max_iter)

    def measure(self, data: Inputs) -> Measured:
        train, val, test = (data.splits[s] for s in self.splits)
        x, val_x, test_x = unit(train.after), unit(val.after), unit(test.after)
        values: dict[str, Value] = {}
        notes = []
        for done, shots in enumerate(self.numbers):
            data.progress(done, len(self.numbers), f"{shots} images per class")
            picks = [draw(train.labels, shots, d) for d in range(self.draws)]
            models = {c: [self._fit(x[p], train.labels[p], c) for p in picks] for c in self.c_grid}
            scores = {
                c: float(np.mean([m.score(val_x, val.labels) for m in fitted]))
                for c, fitted in models.items()
            }
            c = max(self.c_grid, key=lambda C: (scores[C], -C))
            tested = [top1(test.labels, m.predict(test_x)) for m in models[c]]
            spread = [v.value for v in tested]
            values[f"top1, {shots} per class"] = Value(
                float(np.mean(spread)), "larger", True, tested[0].chance
            )
            deviation = f", standard deviation over draws {np.std(spread, ddof=1):.4f}"
            notes.append(
                f"{shots} per class: C = {c:g} chosen on val ({scores[c]:.4f})"
                + (deviation if self.draws > 1 else "")
            )
        return Measured(values, tuple(notes))

    def _fit(self, x: np.ndarray, y: np.ndarray, c: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=c, max_iter=self.max_iter).fit(x, y)

"""Few-shot accuracy: logistic regression trained on a few labelled images per class."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdep_bench.bounds import Count, Counts, Positives
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value, top1, unit


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` random images of every class.

    With the same seed, the images for fewer shots are a subset of the images for more shots.

    Raises:
        KdepError: a class has fewer images.
    """
    # 5 makes the random numbers independent of other uses of the same seed.
    rng = np.random.default_rng([seed, 5])
    chosen = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        if len(members) < shots:
            raise KdepError(
                f"the probe needs {shots} training images per class, but class number {c} has "
                f"{len(members)}",
                fix=f"lower `shots` in the probe's config to {len(members)}, or add images",
            )
        chosen.append(rng.permutation(members)[:shots])
    return np.concatenate(chosen)


class FewShot(Probe):
    """Top-1 accuracy with few training images per class, averaged over random draws of images.

    Features after the last activation are divided by their Euclidean norm and classified by
    logistic regression, as in Tian et al., ECCV 2020 ("Rethinking few-shot image classification: a
    good embedding is all you need?"). For every number of images, C is the value with the best
    mean accuracy on the validation split. The draws are the same for every backbone.

    Args:
        shots: numbers of training images per class, one result for each.
        draws: number of random draws.
        c_grid: values of C (inverse strength of the regularisation) to choose from.
        max_iter: largest number of iterations of the solver.
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
        x, val_x, test_x = (
            unit(train.post_activation),
            unit(val.post_activation),
            unit(test.post_activation),
        )
        values: dict[str, Value] = {}
        notes = []
        for n_done, shots in enumerate(self.numbers):
            data.progress(n_done, len(self.numbers), f"{shots} images per class")
            chosen = [draw(train.labels, shots, seed) for seed in range(self.draws)]
            models = {
                c: [self._fit(x[index], train.labels[index], c) for index in chosen]
                for c in self.c_grid
            }
            scores = {
                c: float(np.mean([m.score(val_x, val.labels) for m in fitted]))
                for c, fitted in models.items()
            }
            c = max(self.c_grid, key=lambda C: (scores[C], -C))  # the smallest of equally good ones
            results = [top1(test.labels, m.predict(test_x)) for m in models[c]]
            accuracies = [result.value for result in results]
            values[f"top1, {shots} per class"] = Value(
                float(np.mean(accuracies)), "larger", percent=True, chance=results[0].chance
            )
            deviation = f", standard deviation over draws {np.std(accuracies, ddof=1):.4f}"
            notes.append(
                f"{shots} per class: C = {c:g} chosen on val ({scores[c]:.4f})"
                + (deviation if self.draws > 1 else "")
            )
        return Measured(values, tuple(notes))

    def _fit(self, x: np.ndarray, y: np.ndarray, c: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=c, max_iter=self.max_iter).fit(x, y)

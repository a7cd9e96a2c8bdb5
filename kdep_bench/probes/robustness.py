"""Accuracy of a linear probe on corrupted copies of the test images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdep_bench.bounds import Count, Positives
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value, top1
from kdep_bench.probes.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from kdep_bench.probes.linear import fit


class Robustness(Probe):
    """Accuracy on corrupted test images of a linear probe that is trained on clean images.

    `top1, clean`: accuracy on the uncorrupted test images. `top1, severity S`: mean over all
    corruptions. `top1, <corruption>`: mean over the five severities. `top1, corrupted`: mean over
    corruptions and severities. `top1, clean - corrupted`: a smaller difference is not always
    better, because a backbone with chance accuracy has none. Noise is the same for every backbone.

    Args:
        corruptions: names of `corruptions.CORRUPTIONS`.
        c_grid: values of C to choose from, by accuracy on the clean validation split.
        max_iter: largest number of iterations of the solver.
    """

    reads = frozenset({"classes", "backbone"})
    splits = ("train", "val", "test")

    def __init__(
        self,
        corruptions: Sequence[
            Literal[
                "gaussian_noise",
                "shot_noise",
                "gaussian_blur",
                "brightness",
                "contrast",
                "pixelate",
                "jpeg_compression",
            ]
        ],
        c_grid: Positives = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iter: Count = 500,
    ) -> None:
        self.corruptions = list(corruptions)
        self.c_grid, self.max_iter = list(c_grid), int(max_iter)

    def measure(self, data: Inputs) -> Measured:
        assert data.images is not None
        assert data.extract is not None
        train, val, test = (data.splits[s] for s in self.splits)
        linear = fit(train, val, self.c_grid, self.max_iter)
        clean = top1(test.labels, linear.model.predict(test.post_activation.astype(np.float64)))
        n_correct: dict[tuple[str, int], int] = defaultdict(int)
        start = 0
        for batch in data.images("test"):
            labels = test.labels[start : start + len(batch)]
            for name in self.corruptions:
                number = list(CORRUPTIONS).index(name)
                for severity in SEVERITIES:
                    copies = corrupted(batch, name, severity, [start, number, severity])
                    after = data.extract(copies)[1].astype(np.float64)
                    n_correct[name, severity] += int((linear.model.predict(after) == labels).sum())
            start += len(batch)
            data.progress(start, len(test), "corrupted images")
        if start != len(test):
            raise KdepError(
                f"the test split has {start} images now, but its features are of {len(test)}",
                fix="run the suite again with --force features",
            )
        score = {key: count / len(test) for key, count in n_correct.items()}
        mean = float(np.mean(list(score.values())))
        values = {
            "top1, clean": clean,
            "top1, corrupted": Value(mean, "larger", percent=True, chance=clean.chance),
            "top1, clean - corrupted": Value(clean.value - mean, "", True),
        }
        for severity in SEVERITIES:
            scores = [score[name, severity] for name in self.corruptions]
            values[f"top1, severity {severity}"] = Value(
                float(np.mean(scores)), "larger", percent=True, chance=clean.chance
            )
        for name in self.corruptions:
            scores = [score[name, severity] for severity in SEVERITIES]
            shown = name.replace("_", " ")
            values[f"top1, {shown}"] = Value(
                float(np.mean(scores)), "larger", percent=True, chance=clean.chance
            )
        return Measured(values, (linear.note,))

"""How many dimensions a feature uses: effective rank, participation ratio, dead dimensions."""

from __future__ import annotations

import numpy as np

from kdep_bench.bounds import Positive
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value


def singular_values(x_ND: np.ndarray) -> np.ndarray:
    """Singular values of the features [N, D] after subtraction of their mean, largest first."""
    x = np.asarray(x_ND, np.float64)
    return np.linalg.svd(x - x.mean(0), compute_uv=False)


def effective_rank(s: np.ndarray) -> float:
    """exp(entropy of s / sum(s)) of singular values s (Roy and Vetterli 2007); 0 if all are 0."""
    p = s[s > 0] / s.sum() if s.sum() > 0 else np.zeros(0)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def participation_ratio(s: np.ndarray) -> float:
    """(sum of variances)^2 / sum of squared variances, with variances s^2; 0 if all are 0."""
    variance = s**2
    return float(variance.sum() ** 2 / (variance**2).sum()) if variance.sum() > 0 else 0.0


def dead_fraction(x_ND: np.ndarray, relative: float) -> float:
    """Fraction of channels whose standard deviation is at most `relative` times the largest."""
    deviation = np.asarray(x_ND, np.float64).std(0)
    return float((deviation <= relative * deviation.max()).mean())


class EffectiveRank(Probe):
    """Number of dimensions in which the features of the test images vary; reads no labels.

    `effective rank` and `participation ratio` are between 1 and the width (0 if all features are
    equal). They are measured after and before the last activation. Larger is not always better,
    because noise has full rank. `dead dimensions`: fraction of channels, after the activation, with
    almost no variance over the images.

    Args:
        dead_below: a channel is dead if its standard deviation is at most this fraction of the
            largest one.
    """

    reads = frozenset({"classes"})  # the images of the labelled set; their labels are not used
    splits = ("test",)
    more_images_than_width = True

    def __init__(self, dead_below: Positive = 1e-3) -> None:
        self.dead_below = float(dead_below)

    def measure(self, data: Inputs) -> Measured:
        test = data.splits["test"]
        dimensions = test.post_activation.shape[1]
        if len(test) <= dimensions:
            raise KdepError(
                f"the effective rank of a feature with {dimensions} dimensions cannot be measured "
                f"from {len(test)} test images",
                expected="more images than dimensions",
                fix="add test images, or remove the probe from the suite",
            )
        s, s_before = singular_values(test.post_activation), singular_values(test.pre_activation)
        return Measured(
            {
                "effective rank": Value(effective_rank(s)),
                "participation ratio": Value(participation_ratio(s)),
                "dead dimensions": Value(
                    dead_fraction(test.post_activation, self.dead_below),
                    better="smaller",
                    percent=True,
                ),
                "effective rank before activation": Value(effective_rank(s_before)),
                "participation ratio before activation": Value(participation_ratio(s_before)),
            }
        )

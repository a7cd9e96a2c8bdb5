"""Intervals over seeds and test images, from a bootstrap of the images and the scores of the seeds.

The score x[s, n] varies with the training s and with the image n. The images are resampled, with
the same samples for every training and for both methods of a difference. This also works for scores
that are not means over images, such as mIoU. From the scores of the S trainings on all N images and
on the bootstrap samples, `crossed` estimates three parts of the variance of the mean score:

    V_s   from the differences between the trainings' scores on all images,
    V_n   the variance over samples of the mean over trainings,
    V_sn  from the variance over samples of each training's deviation from that mean.

V_s and V_n both contain V_sn:

    variance = max(V_s + V_n - V_sn, V_n)

This is the variance for two crossed factors (Cameron, Gelbach and Miller 2011; Owen 2007 for the
bootstrap of a crossed design). The degrees of freedom of the parts are S - 1, N - 1 and
(S - 1)(N - 1), combined as by Satterthwaite (1946). Tests simulate the coverage. With one training
the interval covers test images only, which `Estimate.seeds` states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import stdtrit

from kdep_bench.results.statistics.intervals import LEVEL, Array, Estimate, Key

REPLICATES = 1000  # number of bootstrap samples
MIN_IMAGES = 20  # fewer images are too few for a bootstrap


@lru_cache(maxsize=2)
def image_weights(images: int, replicates: int = REPLICATES, seed: int = 0) -> Array:
    """How often each image is in each bootstrap sample, [R, N]; equal for equal arguments."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(images, np.full(images, 1 / images), replicates).astype(float)
    weights.setflags(write=False)
    return weights


def crossed(scores: Array, replicates: Array, images: int, level: float = LEVEL) -> Estimate:
    """Mean and interval over seeds and test images.

    Args:
        scores: [S], the score of each training on all images.
        replicates: [R, S], the score of each training on each bootstrap sample of the images.
        images: number of images N.
    """
    seeds = len(scores)
    mean = float(scores.mean())
    v_images = float(replicates.mean(1).var(ddof=1))
    v_seeds = float(scores.var(ddof=1)) / seeds if seeds > 1 else 0.0
    v_both = 0.0
    if seeds > 1:
        deviations = replicates - replicates.mean(1, keepdims=True)
        v_both = float(deviations.var(0, ddof=1).sum()) / (seeds - 1) / seeds
    variance = max(v_seeds + v_images - v_both, v_images)
    parts = v_images**2 / (images - 1)
    if seeds > 1:
        parts += v_seeds**2 / (seeds - 1) + v_both**2 / ((seeds - 1) * (images - 1))
    df = min(variance**2 / parts, seeds * images - 1) if parts > 0 else float(images - 1)
    df = max(df, min(seeds, images) - 1, 1)
    half = float(stdtrit(df, (1 + level) / 2)) * variance**0.5
    covers = f"{seeds} seed{'s' if seeds > 1 else ''} and {images} test images"
    if seeds == 1:
        covers = f"{images} test images of one training"
    sd = float(scores.std(ddof=1)) if seeds > 1 else None
    return Estimate(
        mean, sd, seeds, variance**0.5, df, mean - half, mean + half, "crossed bootstrap", covers
    )


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """The scores of one training: `score` on all images, `replicates` [R] on the samples."""

    score: float
    replicates: Array


def resample(
    weighted: Callable[[Array], Array], images: int, recorded: float | None = None
) -> Resampled:
    """The scores of one training on the samples of `image_weights`.

    Args:
        weighted: weights [R, N] -> [R], the score if image n is counted `weights[r, n]` times.
        images: number of images N.
        recorded: the score on all images in the record, which may be rounded; None: computed.
    """
    score = float(weighted(np.ones((1, images)))[0]) if recorded is None else recorded
    return Resampled(score, weighted(image_weights(images)))


def score(trainings: Mapping[Key, Resampled], images: int) -> Estimate:
    """The mean score of one method over its trainings, with its interval.

    Args:
        trainings: seed pair -> scores of this training, all on the same images.
        images: number of images.
    """
    every = [trainings[key] for key in sorted(trainings)]
    scores = np.array([t.score for t in every])
    return crossed(scores, np.stack([t.replicates for t in every], 1), images)


def paired(
    first: Mapping[Key, Resampled], second: Mapping[Key, Resampled], images: int
) -> Estimate | None:
    """Score of `first` minus that of `second`, paired by image and seed.

    Returns:
        None without a common seed pair.
    """
    common = first.keys() & second.keys()
    gaps = {
        key: Resampled(
            first[key].score - second[key].score,
            first[key].replicates - second[key].replicates,
        )
        for key in common
    }
    return score(gaps, images) if gaps else None

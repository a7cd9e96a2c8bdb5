"""Intervals over test images as well as seeds: a bootstrap of images, crossed with seeds.

A score x[s, n] of training s on image n varies with both. `crossed` resamples the images, the same
draw for every training (and for both rows of a difference), which also serves scores that are no
means over images, such as mIoU. From the replicates m[r, s] it takes three variances of the mean
over seeds: that between seeds (V_s), that of the replicates' means (V_n), and that of the
replicates' deviations from their means (V_sn, contained in both):

    variance = max(V_s + V_n - V_sn, V_n),

as for two crossed factors (Cameron, Gelbach and Miller 2011; Owen 2007 for the bootstrap of a
crossed design). Degrees of freedom after Satterthwaite (1946): S - 1, N - 1, (S - 1)(N - 1).
A percentile interval of resampled seeds would cover about 75 % with three of them; tests simulate
the coverage of this one. With one training the interval covers images only, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import stdtrit

from kdep_bench.results.statistics.intervals import LEVEL, Array, Estimate, Key

REPLICATES = 1000
FEWEST_IMAGES = 20  # with fewer, resampled images say too little of others


def image_weights(images: int, replicates: int = REPLICATES, seed: int = 0) -> Array:
    """[R, N] how often each image is in each bootstrap sample; equal for equal arguments."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), replicates).astype(float)


def crossed(scores: Array, replicates: Array, images: int, level: float = LEVEL) -> Estimate:
    """Mean and interval over seeds and test images.

    Args:
        scores: [S] of each training, on all images.
        replicates: [R, S] of each training on each bootstrap sample of the images; the samples are
            the same for all trainings.
        images: N.
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
        covers = f"{images} test images, of one training"
    sd = float(scores.std(ddof=1)) if seeds > 1 else None
    return Estimate(
        mean, sd, seeds, variance**0.5, df, mean - half, mean + half, "crossed bootstrap", covers
    )


Weighted = Callable[[Any, Array], Array]  # (per-sample outputs, [R, N]) -> [R]


def score(outputs: Mapping[Key, Any], weighted: Weighted, images: int) -> Estimate:
    """The score of one row: `outputs` by seed pair, all on the same images."""
    return _estimate({key: [(1, o)] for key, o in outputs.items()}, weighted, images)


def paired(
    first: Mapping[Key, Any], second: Mapping[Key, Any], weighted: Weighted, images: int
) -> Estimate | None:
    """first - second, paired by image and seed; None without a common seed pair."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    return _estimate({k: [(1, first[k]), (-1, second[k])] for k in common}, weighted, images)


def _estimate(
    terms: Mapping[Key, list[tuple[int, Any]]], weighted: Weighted, images: int
) -> Estimate:
    drawn, once = image_weights(images), np.ones((1, images))
    columns = [terms[key] for key in sorted(terms)]
    scores = [sum(sign * weighted(o, once)[0] for sign, o in column) for column in columns]
    replicates = [sum(sign * weighted(o, drawn) for sign, o in column) for column in columns]
    return crossed(np.array(scores, float), np.stack(replicates, 1), images)

"""The test images on which two rows differ most, from their per-sample outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdep_bench.results.board.board import Column, RowKey
from kdep_bench.results.records.image_scores import FRACTION_RIGHT

MAX_IMAGES = 3  # images in each direction


@dataclass(frozen=True, slots=True)
class ImageGap:
    """One image, with the score of each of two rows: a mean over the trainings of the row."""

    image: str
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class ImagePair:
    """The scores of `row` and of `reference` on a task, compared image by image.

    Attributes:
        measure: the score of a single image (see kdep_bench/results/records/image_scores.py).
        better, equal, worse: numbers of images on which the mean score of `row` is above, equal to
            or below that of `reference`.
        undefined: number of images for which a row has no score.
        gains, losses: the images with the largest differences, at most MAX_IMAGES of each.
        more_equal_gains, more_equal_losses: numbers of images that are not in `gains` or `losses`,
            but have the same difference as the last image there.
        trainings: numbers of trainings of the row and of the reference.
    """

    row: RowKey
    reference: RowKey
    column: Column
    measure: str
    better: int
    equal: int
    worse: int
    undefined: int
    gains: tuple[ImageGap, ...]
    losses: tuple[ImageGap, ...]
    more_equal_gains: int
    more_equal_losses: int
    trainings: tuple[int, int]

    @property
    def is_accuracy(self) -> bool:
        """Whether the score of an image is the fraction of trainings that are right."""
        return self.measure == FRACTION_RIGHT


def image_pair(
    row: RowKey,
    reference: RowKey,
    column: Column,
    measure: str,
    images: tuple[str, ...],
    first: np.ndarray,
    second: np.ndarray,
) -> ImagePair:
    """Compares `first` [S, N] with `second` [S', N], scores by training and image (NaN: none)."""
    means = [_mean(scores) for scores in (first, second)]
    # Rounded, because the rounding errors of means over trainings are not differences.
    gaps = np.round(means[0] - means[1], 9)
    known = np.flatnonzero(~np.isnan(gaps))
    gains, more_equal_gains = _largest(known, gaps, means, images)
    losses, more_equal_losses = _largest(known, -gaps, means, images)
    return ImagePair(
        row,
        reference,
        column,
        measure,
        int((gaps > 0).sum()),
        int((gaps == 0).sum()),
        int((gaps < 0).sum()),
        len(images) - len(known),
        gains,
        losses,
        more_equal_gains,
        more_equal_losses,
        (len(first), len(second)),
    )


def _mean(scores: np.ndarray) -> np.ndarray:
    """[N] mean over the trainings in which the image has a score; NaN without one."""
    known = ~np.isnan(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, scores, 0.0).sum(0) / known.sum(0)


def _largest(
    known: np.ndarray, gaps: np.ndarray, means: list[np.ndarray], images: tuple[str, ...]
) -> tuple[tuple[ImageGap, ...], int]:
    """(at most MAX_IMAGES images with the largest positive gaps, number of equal gaps left out).

    The others have the same gap as the last of these images.
    """
    positive = [int(n) for n in known if gaps[n] > 0]
    positive.sort(key=lambda n: (-gaps[n], n))
    shown, rest = positive[:MAX_IMAGES], positive[MAX_IMAGES:]
    n_equal = sum(1 for n in rest if gaps[n] == gaps[shown[-1]])
    chosen = (ImageGap(images[n], float(means[0][n]), float(means[1][n])) for n in shown)
    return tuple(chosen), n_equal

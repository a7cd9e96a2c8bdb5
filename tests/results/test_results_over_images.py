"""Intervals over seeds and test images: coverage in simulations with known means."""

from __future__ import annotations

import numpy as np
import pytest

from kdep_bench.results.records.image_scores import image_scores
from kdep_bench.results.records.samples import Samples, scores
from kdep_bench.results.statistics import over_images as oi
from kdep_bench.results.statistics.intervals import Estimate, estimate, p_two_sided

IMAGES = 120
WEIGHTS = oi.image_weights(IMAGES, 300)
RUNS = 1500  # simulations; the standard error of a coverage near 95 % is 0.6 %


def draw(rng, seeds: int, sd_seed: float, sd_image: float, sd_rest: float) -> np.ndarray:
    """Simulated scores [seeds, images] with a true mean of 0.

    The standard deviations are those of seeds, of images, and of both together (the residual).
    """
    return (
        rng.normal(0, sd_seed, (seeds, 1))
        + rng.normal(0, sd_image, (1, IMAGES))
        + rng.normal(0, sd_rest, (seeds, IMAGES))
    )


def interval(x: np.ndarray) -> Estimate:
    """The interval of the mean over seeds and images."""
    return oi.crossed(x.mean(1), WEIGHTS @ x.T / IMAGES, IMAGES)


def width(measured: Estimate) -> float:
    """The width of an interval."""
    assert measured.low is not None
    assert measured.high is not None
    return measured.high - measured.low


def coverage(seeds: int, *spreads: float) -> float:
    """The fraction of simulated intervals that contain the true mean; `spreads`: as in `draw`."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(RUNS):
        measured = interval(draw(rng, seeds, *spreads))
        hits += not measured.excludes_zero
    return hits / RUNS


@pytest.mark.parametrize(
    ("spreads", "lowest", "highest"),
    [
        ((0.03, 1.0, 1.0), 0.93, 0.98),  # seeds, images and their interaction
        ((0.10, 1.0, 1.0), 0.93, 0.98),  # mostly seeds
        ((0.0, 1.0, 0.5), 0.93, 0.98),  # only images
        ((0.2, 0.0, 0.0), 0.93, 0.97),  # only seeds: Student's t
        # only the residual: the variances over seeds and over images contain the same noise
        ((0.0, 0.0, 1.0), 0.93, 0.99),
    ],
)
def test_intervals_from_three_seeds_cover_95_percent(spreads, lowest, highest):
    assert lowest <= coverage(3, *spreads) <= highest


def test_an_interval_over_only_seeds_covers_too_little():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(RUNS):
        means = draw(rng, 3, 0.03, 1.0, 0.2).mean(1)
        measured = estimate({(i, i): float(m) for i, m in enumerate(means)})
        hits += not measured.excludes_zero
    assert hits / RUNS < 0.6  # nominally 95 %


def test_the_interval_of_one_training_covers_only_images_and_states_this():
    assert 0.92 <= coverage(1, 0.0, 1.0, 0.5) <= 0.97
    measured = interval(draw(np.random.default_rng(0), 1, 0, 1, 1))
    assert measured.seeds == "120 test images of one training"


def test_a_paired_test_has_5_percent_false_positives_and_an_interval_narrower_than_that_of_a_row():
    """Two rows have the same images, so the difficulty of an image cancels in the difference."""
    rng = np.random.default_rng(3)
    false_positives, width_ratios = 0, []
    for _ in range(RUNS):
        images = rng.normal(0, 1, (1, IMAGES))
        two_rows = [images + draw(rng, 3, 0.03, 0.2, 0.5) for _ in range(2)]
        measured = interval(two_rows[0] - two_rows[1])
        false_positives += p_two_sided(measured) < 0.05
        width_ratios.append(width(measured) / width(interval(two_rows[0])))
    assert 0.01 <= false_positives / RUNS <= 0.065
    assert np.median(width_ratios) < 0.85


def samples(truth, prediction) -> Samples:
    """Per-sample outputs of a classifier of two classes."""
    n = len(truth)
    arrays = {
        "truth": np.asarray(truth, np.int32),
        "prediction": np.asarray(prediction, np.int32),
        "probability": np.ones(n, np.float32),
        "truth_probability": np.ones(n, np.float32),
    }
    return Samples("probe", ("a", "b"), tuple(map(str, range(n))), arrays)


def test_a_paired_difference_over_images_equals_a_value_computed_by_hand():
    """The first row is right on 30 of 40 images, the second on 20 of these 30: +25 points."""
    truth = [0] * 40
    first, second = samples(truth, [0] * 30 + [1] * 10), samples(truth, [0] * 20 + [1] * 20)

    rows = [{(0, 0): oi.resample(image_scores_of(x, "top1").weighted, 40)} for x in (first, second)]
    measured = oi.paired(rows[0], rows[1], 40)
    assert measured is not None
    assert measured.mean == pytest.approx(0.25)
    # 10 of 40 images differ by 1: standard error sqrt(.25 * .75 / 40)
    assert measured.se == pytest.approx((0.25 * 0.75 / 40) ** 0.5, rel=0.08)
    assert oi.paired(rows[0], {(1, 1): rows[1][0, 0]}, 40) is None  # no common seed pair
    assert oi.score(rows[0], 40).mean == pytest.approx(0.75)


def image_scores_of(outputs: Samples, metric: str):
    """The scores of the images, which must exist for this metric."""
    computed = image_scores(outputs, metric)
    assert computed is not None
    return computed


def test_weights_of_one_give_the_score_and_two_copies_of_an_image_count_twice():
    outputs = samples([0, 0, 1, 1], [0, 1, 1, 1])
    weights = np.array([[1, 1, 1, 1], [2, 2, 0, 0], [0, 0, 1, 3]], float)
    resampled = image_scores_of(outputs, "top1").weighted(weights)
    assert resampled.tolist() == [0.75, 0.5, 1.0]
    assert resampled[0] == scores(outputs)["top1"]
    areas = np.array([[[2, 0], [4, 2], [3, 1], [3, 1]], [[5, 0], [5, 0], [5, 0], [5, 0]]], np.int32)
    seg = Samples("iou", ("a", "b"), ("0", "1"), {"areas": areas})
    resampled = image_scores_of(seg, "mIoU").weighted(np.array([[1, 1], [0, 2]], float))
    # class a: 7 / 9, class b: 0 / 2; without image 0, class b is absent
    assert resampled.tolist() == pytest.approx([7 / 18, 1.0])
    assert resampled[0] == pytest.approx(scores(seg)["mIoU"])
    # one image: a 2 / 4 and b 0 / 2; a 5 / 5, without b
    assert image_scores_of(seg, "mIoU").per_image.tolist() == pytest.approx([0.25, 1.0])
    assert image_scores(seg, "AP") is None

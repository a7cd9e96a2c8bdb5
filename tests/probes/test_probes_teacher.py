"""The measures of a teacher against their formulas in float64, and features that are refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Features, Inputs
from kdep_bench.probes.teacher_features import (
    TeacherFeatures,
    mean_cosine,
    spread,
    uniformity,
    within_class_variance,
)
from kdep_bench.results.teacher_measures import ACCURACY, MEASURES, PICKER, PROBED


def features(n: int = 40, width: int = 12, seed: int = 0) -> np.ndarray:
    """Features with unequal variances and a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) * np.linspace(0.2, 3, width) + 1).astype(np.float32)


def test_the_measures_equal_their_formulas():
    x = features().astype(np.float64)
    values = spread(x.astype(np.float32), 5)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert values[PICKER] == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-5)
    p = np.sqrt(variances) / np.sqrt(variances).sum()
    assert values["effective rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    kept = variances[:5].sum() / variances.sum()
    assert values["explained variance"] == pytest.approx(kept, rel=1e-5)
    cosines, potentials = [], []
    for a, b in itertools.combinations(x, 2):
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        cosines.append(a @ b)
        potentials.append(np.exp(-2 * ((a - b) ** 2).sum()))
    assert values["mean cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
    assert values["uniformity"] == pytest.approx(np.log(np.mean(potentials)), rel=1e-5)
    assert set(values) <= set(MEASURES)


def test_the_measures_of_simple_features_are_known():
    equal = np.repeat(np.eye(4), 5, axis=0) - 0.25  # four directions of equal variance in 3-D
    assert spread(equal, None)[PICKER] == pytest.approx(3)
    line = np.outer(np.arange(1.0, 9), [1.0, 2.0])  # one direction
    values = spread(line, None)
    assert (values[PICKER], values["mean cosine"]) == pytest.approx((1, 1))
    assert uniformity(line) == pytest.approx(0, abs=1e-9)
    opposite = np.array([[1.0, 0], [-1, 0]] * 3)
    assert mean_cosine(opposite) == pytest.approx((6 * 1 - 9 * 1) / 15)  # 6 equal pairs, 9 opposite
    labels = np.array([0, 1] * 3)
    assert within_class_variance(opposite, labels) == 0
    assert within_class_variance(opposite, np.array([0, 0, 1, 1, 2, 2])) == 1


def test_the_measures_do_not_depend_on_rotation_scale_or_order_of_images():
    x = features()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    changed = spread((7 * x @ rotation)[::-1], 5)
    for name, value in spread(x, 5).items():
        assert changed[name] == pytest.approx(value, rel=1e-4), name


def test_a_black_box_has_no_measures():
    with pytest.raises(KdepError, match="only class probabilities"):
        spread(np.empty((8, 0), np.float32), 5)


def test_the_explained_variance_is_left_out_where_it_would_always_be_one():
    assert "explained variance" not in spread(features(40, 60), 40)
    assert "explained variance" in spread(features(41, 60), 40)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 4)), "cannot be measured on 3 images"),
        (np.full((9, 4), 0.7), "equal for all images"),
        (np.full((9, 4), np.nan), "NaN or infinity"),
    ],
)
def test_features_without_information_are_refused(x, message):
    with pytest.raises(KdepError, match=message):
        spread(x, None)


def inputs(**change: Any) -> Inputs:
    """Inputs whose classes differ in the teacher's feature; the student's feature is the same."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = rng.normal(size=(60, 6)).astype(np.float32) + 4 * np.eye(6, dtype=np.float32)[labels]
    split = Features(x, x, labels, ("a", "b", "c"))
    pool = Features(x[:, :4], x[:, :4] * 2, np.full(60, -1))
    return Inputs(
        **{
            "teacher_splits": dict.fromkeys(("train", "val", "test"), split),
            "pool": pool,
            "teacher": x[:, :4],
            **change,
        }
    )


def test_the_probe_measures_everything_that_claims_and_reports_read():
    measured = TeacherFeatures(rows=60).measure(inputs())
    values = {k: v.value for k, v in measured.values.items()}
    assert set(values) == set(PROBED)
    assert values[ACCURACY] == 1
    assert measured.values[ACCURACY].chance == pytest.approx(1 / 3)
    assert values["CKA with the student"] == pytest.approx(1)
    assert 0 < values["within-class variance"] < 0.5
    # A linear probe that is fitted on shuffled labels is not accurate.
    shuffled = inputs().teacher_splits["train"]
    labels = np.random.default_rng(3).permutation(shuffled.labels)
    split = Features(shuffled.post_activation, shuffled.pre_activation, labels, shuffled.classes)
    splits = {"train": split, "val": split, "test": inputs().teacher_splits["test"]}
    chance = TeacherFeatures(rows=60).measure(inputs(teacher_splits=splits))
    assert chance.values[ACCURACY].value < 0.8


def test_images_of_one_class_and_teacher_suite_are_refused():
    split = inputs().teacher_splits["train"]
    constant = Features(split.post_activation, split.pre_activation, np.zeros(60, int), ("a",))
    splits = dict.fromkeys(("train", "val", "test"), constant)
    with pytest.raises(KdepError, match="have one class"):
        TeacherFeatures(rows=60).measure(inputs(teacher_splits=splits))
    with pytest.raises(KdepError, match="teacher='suite'"):
        TeacherFeatures(rows=60, teacher="suite")

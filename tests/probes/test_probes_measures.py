"""Every probe on features with a known result, and compared with scikit-learn."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from kdep_bench.errors import KdepError
from kdep_bench.probes import corruptions
from kdep_bench.probes.base import Features, Inputs, Measured, Value, outputs
from kdep_bench.probes.calibration import (
    Calibration,
    binned_error,
    calibration_error,
    classwise_error,
)
from kdep_bench.probes.cka import Cka, linear_cka
from kdep_bench.probes.effective_rank import (
    EffectiveRank,
    dead_fraction,
    effective_rank,
    participation_ratio,
    singular_values,
)
from kdep_bench.probes.few_shot import FewShot, draw
from kdep_bench.probes.knn import Knn, votes
from kdep_bench.probes.retrieval import Retrieval, average_precision
from kdep_bench.probes.robustness import Robustness


def features(x: Any, labels: np.ndarray, classes: int = 0) -> Features:
    """Features that are equal before and after the activation, with class names c0, c1, ..."""
    x = np.asarray(x, np.float32)
    names = tuple(f"c{i}" for i in range(classes or int(labels.max()) + 1))
    return Features(x, x, np.asarray(labels), names)


def clusters(
    n: int = 40, classes: int = 4, noise: float = 0.05, seed: int = 0, width: int = 6
) -> Features:
    """Features around one axis per class, with labels in ascending order."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), n // classes)
    x = np.abs(np.eye(classes, width)[y] + rng.normal(0, noise, (n, width)))
    return features(x, y)


def three_splits(noise: float = 0.05, **options) -> Inputs:
    """The three splits, each with its own noise; `options` go to `clusters`."""
    splits = {
        split: clusters(noise=noise, seed=i, **options) for i, split in enumerate(("train", "val"))
    }
    return Inputs({**splits, "test": clusters(noise=noise, seed=2, **options)})


def collapsed_features(n: int = 40, classes: int = 4) -> Features:
    """Features of a collapsed backbone: all images have the same feature."""
    return features(np.ones((n, 5)), np.repeat(np.arange(classes), n // classes))


# ---- kNN ----


def test_knn_votes_equal_those_worked_out_by_hand():
    """Two far images of class 1 outvote the nearest of class 0 only at a high temperature."""
    bank = features([[1, 0], [0, 1], [0, 1]], np.array([0, 1, 1]))
    query = features([[2, 1]], np.array([0]), 2)  # cosines 0.894, 0.447, 0.447
    votes_by_k = votes(bank, query, [1, 3], T=1.0)
    near, far = np.exp(2 / 5**0.5 - 1), np.exp(1 / 5**0.5 - 1)
    assert votes_by_k[1][0] == pytest.approx([near, 0])
    assert votes_by_k[3][0] == pytest.approx([near, 2 * far])
    assert votes_by_k[3].argmax() == 1
    assert votes(bank, query, [3], T=0.1)[3].argmax() == 0


@pytest.mark.parametrize("k", [1, 3, 10])
def test_knn_equals_scikit_learn(k: int):
    bank, queries = clusters(200, noise=0.5, seed=0), clusters(120, noise=0.5, seed=1)
    weights: Any = lambda d: np.exp(-d / 0.07)  # noqa: E731, scikit-learn's stub allows only a string
    reference = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    reference.fit(bank.post_activation, bank.labels)
    assert (
        votes(bank, queries, [k], 0.07)[k].argmax(1) == reference.predict(queries.post_activation)
    ).all()


def test_k_is_chosen_on_val_and_never_on_test():
    """The test split is made to prefer k = 1: its score with the chosen k = 3 is 0."""
    bank = features([[1, 0.1], [1, -0.1], [1, 0.12], [-1, 0]], np.array([0, 1, 1, 2]))
    val, test = features([[1, 0.0999]], np.array([1]), 3), features([[1, 0.0999]], np.array([0]), 3)
    measured = Knn(k=(1, 3), T=10.0).measure(Inputs({"train": bank, "val": val, "test": test}))
    assert "k = 3 chosen on val (1.0000)" in measured.notes[0]
    assert measured.values["top1"].value == 0.0


def test_knn_scores_separated_classes_fully_and_a_collapsed_backbone_at_chance():
    assert Knn().measure(three_splits()).values["top1"] == Value(1.0, "larger", True, 0.25)
    collapsed = Inputs(dict.fromkeys(("train", "val", "test"), collapsed_features()))
    assert Knn().measure(collapsed).values["top1"].value == 0.25


# ---- few shots ----


def test_draws_are_nested_balanced_and_refuse_a_class_with_too_few():
    y = np.repeat([0, 1, 2], [10, 20, 4])
    for seed in range(3):
        few, more = draw(y, 2, seed), draw(y, 4, seed)
        assert set(few) <= set(more)
        assert np.bincount(y[more]).tolist() == [4, 4, 4]
    assert set(draw(y, 4, 0)) != set(draw(y, 4, 1))
    with pytest.raises(KdepError, match=r"5 training images per class, but class number 2 has 4"):
        draw(y, 5, 0)


def test_few_shot_accuracy_is_full_for_separated_classes_and_chance_for_a_collapsed_backbone():
    probe = FewShot(shots=[1, 4], draws=3, c_grid=[1.0, 10.0])
    values = probe.measure(three_splits()).values
    assert [v.value for v in values.values()] == [1.0, 1.0]
    assert list(values) == ["top1, 1 per class", "top1, 4 per class"]
    collapsed = Inputs(dict.fromkeys(("train", "val", "test"), collapsed_features()))
    assert probe.measure(collapsed).values["top1, 1 per class"].value == 0.25


def test_more_shots_are_better_on_overlapping_classes():
    values = FewShot(shots=[1, 8], draws=10).measure(three_splits(noise=0.5, n=160)).values
    assert values["top1, 8 per class"].value > values["top1, 1 per class"].value + 0.05


# ---- retrieval ----


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_scikit_learn_also_with_ties(seed: int):
    rng = np.random.default_rng(seed)
    score, hit = rng.integers(0, 6, 40) / 6, rng.random(40) < 0.3
    assert average_precision(score, hit) == pytest.approx(average_precision_score(hit, score))


def test_average_precision_is_that_worked_out_by_hand():
    assert average_precision(
        np.array([4, 3, 2, 1.0]), np.array([True, False, True, False])
    ) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_retrieval_of_a_collapsed_backbone_is_chance_although_images_are_in_class_order():
    """A ranking that breaks ties by position would find the classes of sorted folders."""
    values = Retrieval(ranks=[1]).measure(Inputs({"test": collapsed_features(400)})).values
    assert values["mAP"].value == pytest.approx(99 / 399)
    assert values["mAP"].chance == pytest.approx(99 / 399)
    assert values["recall at 1"].value == pytest.approx(99 / 399, abs=0.1)


def test_retrieval_of_separated_classes_is_full_and_a_query_never_finds_itself():
    values = Retrieval().measure(Inputs({"test": clusters()})).values
    assert values["mAP"].value == pytest.approx(1)
    assert values["recall at 1"].value == 1
    # Each image equals one of the other class: only itself would be a correct first answer.
    crossed = features(np.eye(4)[[0, 1, 1, 0]], np.array([0, 0, 1, 1]))
    assert Retrieval(ranks=[1]).measure(Inputs({"test": crossed})).values["recall at 1"].value == 0
    with pytest.raises(KdepError, match="a class has one"):
        Retrieval().measure(Inputs({"test": features(np.eye(3), np.array([0, 0, 1]))}))


# ---- calibration ----


def test_the_binned_error_is_that_worked_out_by_hand():
    """Four predictions of 0.9, half of them true, and one of 0.3, false: gaps of 0.4 and 0.3."""
    p, true = np.array([0.9] * 4 + [0.3]), np.array([1, 1, 0, 0, 0])
    assert binned_error(p, true, 10) == pytest.approx((4 * 0.4 + 0.3) / 5)
    # The probabilities 0 and 1 also fall into a bin.
    assert binned_error(np.array([0.0, 1.0]), np.array([0, 1]), 10) == 0
    # 0.1 and 0.15 cancel in one bin of ten, and not in two of twenty.
    p, true = np.array([0.11, 0.19]), np.array([0.19, 0.11])
    assert binned_error(p, true, 10) == pytest.approx(0)
    assert binned_error(p, true, 20) == pytest.approx(0.08)


def test_calibration_errors_of_a_known_table():
    p = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    y = np.array([0, 0, 1, 2])
    # Top class: 0.7 three times, correct twice; 0.6 once, correct.
    assert calibration_error(p, y, 10) == pytest.approx((abs(2.1 - 2) + 0.4) / 4)
    first, second = (abs(2.1 - 2) + 0.2) / 4, abs(0.8 - 1) / 4
    third = (0.3 + 0.4) / 4
    assert classwise_error(p, y, 10) == pytest.approx((first + second + third) / 3)


def test_calibration_error_of_a_calibrated_and_of_an_always_certain_prediction():
    """0 up to the noise of 200,000 labels, and 1 - accuracy."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 200_000)
    labels = (rng.random(len(p))[:, None] > p.cumsum(1)).sum(1)
    assert calibration_error(p, labels, 15) < 0.005
    certain = np.eye(3)[p.argmax(1)]
    accuracy = float((p.argmax(1) == labels).mean())
    assert calibration_error(certain, labels, 15) == pytest.approx(1 - accuracy)


def test_calibration_of_an_overconfident_and_of_a_collapsed_backbone():
    collapsed = Inputs(dict.fromkeys(("train", "val", "test"), collapsed_features()))
    # The prediction is 0.25 for every class, which is calibrated.
    values = Calibration().measure(collapsed).values
    assert values["ECE"].value == pytest.approx(0, abs=1e-6)
    assert values["NLL"].value == pytest.approx(np.log(4), abs=1e-6)
    assert values["Brier"].value == pytest.approx(0.75, abs=1e-6)
    assert values["top1"].value == 0.25
    separated = three_splits()
    shifted = features(
        separated.splits["test"].post_activation, (separated.splits["test"].labels + 1) % 4
    )
    values_when_wrong = (
        Calibration(c_grid=[1.0]).measure(Inputs({**separated.splits, "test": shifted})).values
    )
    assert values_when_wrong["top1"].value == 0
    assert values_when_wrong["ECE"].value > 0.5
    assert values_when_wrong["Brier"].value > 1
    assert values_when_wrong["NLL"].value > np.log(4)


def test_probabilities_belong_to_their_class_where_the_training_split_lacks_one():
    """scikit-learn has no column for a class without training images."""
    separated = three_splits()
    kept = separated.splits["train"].labels != 1
    train = features(
        separated.splits["train"].post_activation[kept], separated.splits["train"].labels[kept]
    )
    values = Calibration(c_grid=[1.0]).measure(Inputs({**separated.splits, "train": train})).values
    assert values["top1"].value == pytest.approx(0.75)


# ---- effective rank ----


def test_effective_rank_of_known_spectra():
    assert effective_rank(np.array([2.0, 2.0, 2.0, 2.0])) == pytest.approx(4)
    assert participation_ratio(np.array([2.0, 2.0, 2.0, 2.0])) == pytest.approx(4)
    assert effective_rank(np.array([5.0, 0.0])) == pytest.approx(1)
    # p = (3/4, 1/4); variances 9 and 1.
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(np.exp(0.5623351446188083))
    assert participation_ratio(np.array([3.0, 1.0])) == pytest.approx(100 / 82)
    assert effective_rank(np.zeros(3)) == participation_ratio(np.zeros(3)) == 0


def test_a_common_offset_of_all_features_does_not_change_the_singular_values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    s = singular_values(x + 1000)
    assert s == pytest.approx(singular_values(x))


def test_dead_dimensions_and_a_collapsed_backbone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4)) * [1, 1, 1e-5, 0]
    assert dead_fraction(x, 1e-3) == 0.5
    assert dead_fraction(np.ones((10, 3)), 1e-3) == 1
    values = EffectiveRank().measure(Inputs({"test": collapsed_features()})).values
    assert values["effective rank"].value == 0
    assert values["dead dimensions"].value == 1


def test_effective_rank_refuses_fewer_images_than_dimensions():
    """The rank would be limited by the number of images."""
    few = features(np.eye(5), np.arange(5))
    with pytest.raises(KdepError, match="with 5 dimensions cannot be measured from 5 test images"):
        EffectiveRank().measure(Inputs({"test": few}))


# ---- CKA ----


def test_cka_is_one_for_a_rotated_and_scaled_feature_and_about_zero_for_an_unrelated_one():
    rng = np.random.default_rng(0)
    x, unrelated = rng.normal(size=(400, 30)), rng.normal(size=(400, 300))
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 7 * x @ rotation + 3) == pytest.approx(1)
    assert abs(linear_cka(x, unrelated)) < 0.03  # the biased estimate gives 0.25 for these
    assert 0.3 < linear_cka(x, np.hstack([x[:, :15], rng.normal(size=(400, 15))])) < 0.7


def test_cka_equals_the_estimator_written_out():
    """HSIC of Song et al. by its definition: means over all tuples of different images."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 2)), rng.normal(size=(7, 3))
    y[:, 0] += x[:, 0]

    def hsic_by_definition(a, b):
        """HSIC of two centred features [n, width]."""
        gram_a, gram_b, n = a @ a.T, b @ b.T, len(a)
        total = np.zeros(3)
        counts = np.zeros(3)
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total[1] += gram_a[i, j] * gram_b[q, r]
                            counts[1] += 1
                    if len({i, j, q}) == 3:
                        total[2] += gram_a[i, j] * gram_b[i, q]
                        counts[2] += 1
                if i != j:
                    total[0] += gram_a[i, j] * gram_b[i, j]
                    counts[0] += 1
        pairs, quadruples, triples = total / counts
        return pairs + quadruples - 2 * triples

    x, y = x - x.mean(0), y - y.mean(0)
    expected = hsic_by_definition(x, y) / np.sqrt(
        hsic_by_definition(x, x) * hsic_by_definition(y, y)
    )
    assert linear_cka(x, y) == pytest.approx(expected)


def test_cka_refuses_a_collapsed_feature_instead_of_dividing_by_zero():
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(KdepError, match="features are all equal"):
        linear_cka(np.ones((20, 3)), x)
    with pytest.raises(KdepError, match="3 images"):
        linear_cka(x[:3], x[:3])


def test_the_cka_probe_compares_each_feature_with_the_teacher():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200, 4)).astype(np.float32)
    pool = Features(post_activation=y, pre_activation=x, labels=np.full(200, -1))
    values = Cka(rows=200).measure(Inputs(pool=pool, teacher=2 * x)).values
    assert values["CKA before activation"].value == pytest.approx(1)
    assert abs(values["CKA"].value) < 0.1


# ---- robustness ----


def flat_images(value: float = 0.5, px: int = 64, n: int = 2) -> np.ndarray:
    """n flat grey images of px pixels."""
    return np.full((n, px, px, 3), round(255 * value), np.uint8)


def test_corruptions_of_flat_and_two_coloured_images_are_those_worked_out():
    flat = flat_images(0.4)
    for severity, contrast in enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1):
        assert (corruptions.corrupted(flat, "contrast", severity, [0]) == flat).all()
        half = flat.copy()
        half[:, :32] = 204
        corrupted = corruptions.corrupted(half, "contrast", severity, [0]).astype(int)
        assert corrupted.max() - corrupted.min() == pytest.approx((204 - 102) * contrast, abs=1)
    assert corruptions.corrupted(flat, "brightness", 2, [0])[0, 0, 0].tolist() == [153] * 3
    coloured = np.zeros((1, 4, 4, 3), np.uint8) + np.array([100, 50, 0], np.uint8)
    corrupted = corruptions.corrupted(coloured, "brightness", 1, [0])[0, 0, 0]
    # The largest channel plus 25.5, the others in proportion.
    assert corrupted.tolist() == [126, 63, 0]
    assert corruptions.corrupted(flat_images(0), "brightness", 5, [0]).max() == 128
    for name in ("gaussian_blur", "pixelate"):
        assert (corruptions.corrupted(flat, name, 5, [0]) == flat).all()


def test_noise_has_the_stated_standard_deviation_and_depends_only_on_its_seed():
    flat = flat_images(0.5, n=8)
    noisy = [corruptions.corrupted(flat, "gaussian_noise", s, [1]) / 255 for s in (1, 2, 3)]
    assert [x.std() for x in noisy] == pytest.approx([0.04, 0.08, 0.12], rel=0.03)
    shot = corruptions.corrupted(flat, "shot_noise", 1, [1]) / 255
    assert shot.std() == pytest.approx(np.sqrt(0.5 / 250), rel=0.05)
    repeated = corruptions.corrupted(flat, "gaussian_noise", 1, [1]) / 255
    assert (repeated == noisy[0]).all()
    assert (corruptions.corrupted(flat, "gaussian_noise", 1, [2]) / 255 != noisy[0]).any()


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS))
def test_every_corruption_keeps_the_shape_and_grows_with_severity(name: str):
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(0, 1, (4, 64, 64, 3)), (0, 2, 2, 0))
    images = np.clip(120 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    images[:, 16:48, 16:48] //= 3
    changes = []
    for severity in corruptions.SEVERITIES:
        corrupted = corruptions.corrupted(images, name, severity, [3])
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.uint8
        changes.append(float(np.abs(corrupted.astype(float) - images).mean()))
    assert changes[-1] > changes[0] > 0


def test_red_stays_red_in_a_jpeg():
    """Exchanged channel orders at encoding or decoding would turn it blue."""
    red = np.zeros((1, 16, 16, 3), np.uint8)
    red[..., 0] = 200
    corrupted = corruptions.corrupted(red, "jpeg_compression", 5, [0])
    assert corrupted[..., 0].min() > 150
    assert corrupted[..., 2].max() < 50


def test_the_type_hint_of_the_config_lists_exactly_the_existing_corruptions():
    annotation = inspect.signature(Robustness).parameters["corruptions"].annotation
    names = {n.value for n in ast.walk(ast.parse(annotation)) if isinstance(n, ast.Constant)}
    assert names == set(corruptions.CORRUPTIONS)


def test_robustness_of_a_backbone_whose_feature_is_the_brightness():
    """Three classes of flat images: contrast changes none of them, brightness all of them."""
    levels = np.array([0.2, 0.4, 0.6])
    y = np.repeat(np.arange(3), 10)
    images = np.stack([flat_images(levels[c], px=16, n=1)[0] for c in y])

    def extract(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Brightness [n, 1] before the activation, and twice the same [n, 2] after it."""
        x = batch.reshape(len(batch), -1).mean(1, keepdims=True).astype(np.float32) / 255
        return x, np.hstack([x, x])

    split = Features(extract(images)[1], extract(images)[1], y, ("a", "b", "c"))
    calls: list[str] = []

    def stream(name: str):
        """The images in batches of 12 and 18; records the name of the split."""
        calls.append(name)
        yield images[:12]
        yield images[12:]

    data = Inputs(dict.fromkeys(("train", "val", "test"), split), images=stream, extract=extract)
    probe = Robustness(corruptions=["contrast", "brightness"], c_grid=[100.0])
    values = probe.measure(data).values
    assert calls == ["test"]
    assert values["top1, clean"].value == values["top1, contrast"].value == 1
    # Brightness + 0.2 makes every class look like the next one, and + 0.4 or more like the last.
    assert values["top1, brightness"].value <= 0.6
    both = [values["top1, contrast"].value, values["top1, brightness"].value]
    assert values["top1, corrupted"].value == pytest.approx(np.mean(both))
    assert values["top1, clean - corrupted"].value == pytest.approx(1 - np.mean(both))
    assert values["top1, severity 5"].value == pytest.approx((1 + 1 / 3) / 2)


def test_robustness_refuses_images_that_are_not_those_of_the_features():
    split = clusters(width=2)

    def stream(_: str):
        """Three images, although the split has features of 40."""
        yield flat_images(0.5, px=8, n=3)

    def extract(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of zeros."""
        return np.zeros((len(batch), 2)), np.zeros((len(batch), 2))

    data = Inputs(dict.fromkeys(("train", "val", "test"), split), images=stream, extract=extract)
    with pytest.raises(KdepError, match="has 3 images now, but its features are of 40"):
        Robustness(corruptions=["contrast"]).measure(data)


# ---- values that a stage stores ----


def test_a_value_that_is_not_finite_is_refused_and_never_stored():
    with pytest.raises(KdepError, match=r"probe 'x' is a = nan"):
        outputs(Measured({"a": Value(float("nan"))}), "probe 'x'")
    with pytest.raises(KdepError, match="no value"):
        outputs(Measured({}), "probe 'x'")

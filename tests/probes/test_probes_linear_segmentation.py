"""Linear segmentation: known answers, the minimum of its loss, and block counts and IoU by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs
from kdep_bench.probes.extract_maps import Maps
from kdep_bench.probes.linear_segmentation import (
    LinearSegmentation,
    _Layer,
    block_counts,
    confusion_matrix,
    mean_iou,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Runs each test with one thread of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scenes(seed: int, images: int = 12, mixed: bool = False) -> Maps:
    """Masks of two classes in blocks of 4 x 4 pixels, with a fine and a coarse map.

    One channel of the fine map is the class, -1 or 1; all others are noise. With `mixed` the fine
    map belongs to another image.
    """
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (images, 6, 8))
    masks = blocks.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    classes = np.roll(blocks, 1, 0) if mixed else blocks
    fine = np.stack([classes * 2.0 - 1, rng.normal(0, 1, blocks.shape)], 1)
    coarse = rng.normal(0, 1, (images, 3, 3, 4))
    return Maps((fine.astype(np.float16), coarse.astype(np.float16)), masks)


def measured(**splits: Maps) -> dict[str, float]:
    """The values of the probe on these splits, by name."""
    probe = LinearSegmentation(size=[24, 32], decay=[1e-4, 1e-2], max_iter=25)
    return {k: v.value for k, v in probe.measure(Inputs(maps=splits)).values.items()}


def test_segmentation_is_good_with_maps_of_the_image_and_bad_with_maps_of_another():
    splits = {name: scenes(i) for i, name in enumerate(("train", "val", "test"))}
    good = measured(**splits)
    # The mIoU is below 1, because resized logits change sign within a block at its borders.
    assert good["mIoU"] > 0.7
    wrong = measured(**{**splits, "test": scenes(2, mixed=True)})
    assert wrong["mIoU"] < 0.4
    assert good["pixel accuracy"] > 0.8


def test_the_weights_are_the_minimum_of_the_loss_of_logistic_regression():
    """The same as scikit-learn's on the blocks, each weighted by its pixels of a class."""
    from sklearn.linear_model import LogisticRegression

    train = scenes(0)
    train = Maps(train.levels[:1], train.masks)
    rng = np.random.default_rng(1)
    train.masks[rng.random(train.masks.shape) < 0.3] = 1  # blocks of both classes
    train.masks[rng.random(train.masks.shape) < 0.2] = 255
    layer, decay = _Layer(train, 2), 1e-2
    kernel, bias = (w.numpy() for w in layer.fit(decay, 200))
    x = layer.maps[0].numpy().transpose(0, 2, 3, 1).reshape(-1, 2)
    counts = layer.counts.numpy().transpose(0, 2, 3, 1).reshape(-1, 2)
    # scikit-learn minimises the sum of weights * loss + |w|^2 / (2 C), with one kernel w. Here are
    # two kernels, at the minimum k_1 = w / 2 and k_0 = -w / 2, with the penalty
    # decay / 2 * (|k_0|^2 + |k_1|^2) = decay / 4 * |w|^2. So C = 2 / decay.
    oracle = LogisticRegression(C=2 / decay, tol=1e-10, max_iter=1000)
    weights = counts.T.ravel() / counts.sum()
    oracle.fit(np.concatenate([x, x]), np.repeat([0, 1], len(x)), weights)
    np.testing.assert_allclose(kernel[1] - kernel[0], oracle.coef_[0], atol=2e-3)
    assert bias[1] - bias[0] == pytest.approx(np.ravel(oracle.intercept_)[0], abs=2e-3)


def test_block_counts_confusion_matrix_and_iou_equal_those_worked_out_by_hand():
    mask = np.array([[[0, 0, 1, 1], [0, 255, 1, 2]]], np.uint8)
    assert block_counts(mask, (1, 2), 3)[0].tolist() == [[[3, 0]], [[0, 3]], [[0, 1]]]
    predicted = np.array([[[0, 1, 1, 1], [0, 2, 1, 1]]])
    confusion = confusion_matrix(predicted, mask, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 3, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert mean_iou(confusion) == pytest.approx((2 / 3 + 3 / 5 + 0) / 3)  # class 3 is nowhere


def test_masks_without_labels_are_refused():
    empty = scenes(0)
    empty.masks[:] = 255
    with pytest.raises(KdepError, match="no training mask has a labelled pixel"):
        measured(train=empty, val=scenes(1), test=scenes(2))

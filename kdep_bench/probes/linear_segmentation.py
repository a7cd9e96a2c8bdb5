"""Segmentation by one linear layer, applied at every position of frozen feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdep_bench.bounds import Count, Counts, Positives
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value

if TYPE_CHECKING:
    from kdep_bench.probes.extract_maps import Maps

IGNORE = 255  # mask value of pixels without a class


def block_counts(masks: np.ndarray, size: Sequence[int], classes: int) -> np.ndarray:
    """[N, classes, h, w] number of pixels of each class at every position of a map.

    `size`: (h, w) of the map. A position of the map covers a block of pixels of the mask.
    """
    n, height, width = masks.shape
    rows = np.arange(height) * size[0] // height
    columns = np.arange(width) * size[1] // width
    block = rows[:, None] * size[1] + columns[None]
    blocks = size[0] * size[1]
    counts = np.zeros((n, classes, blocks), np.float32)
    for i, mask in enumerate(masks):
        is_labelled = mask != IGNORE
        class_and_block = mask[is_labelled].astype(np.int64) * blocks + block[is_labelled]
        histogram = np.bincount(class_and_block, minlength=classes * blocks)
        counts[i] = histogram.reshape(classes, blocks)
    return counts.reshape(n, classes, *size)


def confusion_matrix(predicted: np.ndarray, masks: np.ndarray, classes: int) -> np.ndarray:
    """[classes, classes] number of pixels by (true, predicted) class; IGNORE is left out."""
    is_labelled = masks != IGNORE
    true_and_predicted = masks[is_labelled].astype(np.int64) * classes + predicted[is_labelled]
    return np.bincount(true_and_predicted, minlength=classes**2).reshape(classes, classes)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that are in the truth or in the prediction."""
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float((hit[union > 0] / union[union > 0]).mean())


class LinearSegmentation(Probe):
    """One 1x1 convolution on the frozen maps, all levels together; mIoU on the test split.

    The levels are those that a segmentation head reads (strides 8, 16, 32). Every channel is
    standardised with its mean and standard deviation on the training split. The logits of coarser
    levels are resized to the finest level (bilinear), which is the same as resizing the maps.

    The loss is the cross-entropy, averaged over all labelled pixels, plus `decay` / 2 * |W|^2. All
    pixels of a block that one position of the finest level covers have the logits of this position.
    The loss is convex and is minimised by L-BFGS, without augmentation or random numbers. The
    weights start at zero for the largest decay, and for each smaller one at the solution for the
    decay before it. For the scores, logits are resized to the image.

    `mIoU`: as in the segmentation task; chance is the mIoU of predicting the most frequent class
    everywhere. `pixel accuracy`: fraction of labelled pixels that are classified correctly.

    Args:
        size: (height, width) to which images and masks are resized.
        decay: values of the factor `decay` to choose from, by mIoU on the validation split.
        max_iter: largest number of steps of the solver for each value.
    """

    reads = frozenset({"masks"})
    splits = ("train", "val", "test")

    def __init__(
        self,
        size: Counts,
        decay: Positives = (1e-4, 1e-3, 1e-2, 1e-1),
        max_iter: Count = 100,
    ) -> None:
        self.size, self.decay, self.max_iter = list(size), sorted(decay), int(max_iter)

    def measure(self, data: Inputs) -> Measured:
        train, val, test = (data.maps[s] for s in self.splits)
        labels = np.concatenate([m.masks[m.masks != IGNORE] for m in (train, val, test)])
        if not labels.size or not (train.masks != IGNORE).any():
            raise KdepError(
                "no training mask has a labelled pixel",
                expected=f"class numbers from 0, and {IGNORE} for no class",
                fix="check the masks of the data",
            )
        classes = int(labels.max()) + 1
        layer = _Layer(train, classes)
        best: tuple[float, float, Any] | None = None
        for done, decay in enumerate(reversed(self.decay)):  # the largest first
            data.progress(done, len(self.decay), f"decay {decay:g}")
            weights = layer.fit(decay, self.max_iter)
            score = mean_iou(layer.confusion(val, weights))
            if best is None or score > best[0]:
                best = score, decay, weights
        assert best is not None
        score, decay, weights = best
        confusion = layer.confusion(test, weights)
        truth = confusion.sum(1)
        chance = float(truth.max() / truth.sum()) / int((truth > 0).sum())
        values = {
            "mIoU": Value(mean_iou(confusion), "larger", percent=True, chance=chance),
            "pixel accuracy": Value(
                float(np.trace(confusion) / truth.sum()),
                "larger",
                True,
                float(truth.max() / truth.sum()),
            ),
        }
        note = f"decay = {decay:g} chosen on val ({score:.4f}), {layer.evaluations} evaluations"
        return Measured(values, (note,))


class _Layer:
    """The linear layer of one training split, which is fitted for several values of `decay`."""

    def __init__(self, train: Maps, classes: int) -> None:
        import torch

        self.classes, self.evaluations = classes, 0
        self.scales = [_scale(level) for level in train.levels]
        size = train.levels[0].shape[2:]
        counts = torch.from_numpy(block_counts(train.masks, size, classes))
        self.counts, self.total = counts, counts.sum()
        self.maps = self._scaled(train)
        self.weights: list[Any] | None = None

    def _scaled(self, maps: Maps) -> list[Any]:
        import torch

        return [
            (torch.from_numpy(level.astype(np.float32)) - mean) / std
            for level, (mean, std) in zip(maps.levels, self.scales, strict=True)
        ]

    def _logits(self, maps: list[Any], weights: list[Any]) -> Any:
        """[N, classes, h, w] at the size of the finest level."""
        from torch.nn import functional as F

        *kernels, bias = weights
        size, logits = maps[0].shape[2:], bias[None, :, None, None]
        for level, kernel in zip(maps, kernels, strict=True):
            part = F.conv2d(level, kernel[:, :, None, None])
            if part.shape[2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            logits = logits + part
        return logits

    def fit(self, decay: float, max_iter: int) -> list[Any]:
        """[kernel [classes, C] of every level, bias]; starts from the previous call's solution."""
        import torch

        if self.weights is None:
            self.weights = [torch.zeros(self.classes, m.shape[1]) for m in self.maps]
            self.weights.append(torch.zeros(self.classes))
        weights = [w.clone().requires_grad_() for w in self.weights]
        solver = torch.optim.LBFGS(
            weights, max_iter=max_iter, history_size=20, line_search_fn="strong_wolfe",
            tolerance_grad=1e-6, tolerance_change=1e-9,
        )  # fmt: skip

        def loss() -> Any:
            self.evaluations += 1
            solver.zero_grad()
            log_probabilities = torch.log_softmax(self._logits(self.maps, weights), 1)
            value = -(log_probabilities * self.counts).sum() / self.total
            value = value + decay / 2 * sum((w**2).sum() for w in weights[:-1])
            value.backward()
            return value

        solver.step(loss)
        self.weights = [w.detach() for w in weights]
        if not all(bool(torch.isfinite(w).all()) for w in self.weights):
            raise KdepError(
                f"the linear layer diverged with decay = {decay:g}",
                fix="raise the values of `decay` in the probe's config",
            )
        return self.weights

    def confusion(self, maps: Maps, weights: list[Any]) -> np.ndarray:
        """Pixels of the split by (true, predicted) class."""
        import torch
        from torch.nn import functional as F

        total = np.zeros((self.classes, self.classes), np.int64)
        scaled, step = self._scaled(maps), 64
        with torch.inference_mode():
            for start in range(0, len(maps), step):
                part = slice(start, start + step)
                logits = self._logits([m[part] for m in scaled], weights)
                size = maps.masks.shape[1:]
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
                predicted = logits.argmax(1).numpy()
                total += confusion_matrix(predicted, maps.masks[part], self.classes)
        return total


def _scale(level: np.ndarray) -> tuple[Any, Any]:
    """(mean, standard deviation) of each channel, [1, C, 1, 1].

    The standard deviation of a constant channel is replaced by 1.
    """
    import torch

    x = torch.from_numpy(level.astype(np.float32))
    mean = x.mean((0, 2, 3), keepdim=True)
    std = x.std((0, 2, 3), keepdim=True, correction=0)
    return mean, torch.where(std > 1e-6, std, torch.ones_like(std))

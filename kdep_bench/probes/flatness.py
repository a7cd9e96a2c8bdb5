"""Flatness of the loss of a linear probe around a backbone's weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdep_bench.bounds import Count, Positive, Positives
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, Value
from kdep_bench.probes.linear import logistic

PART = 64  # images whose graph is in memory at the same time


class Flatness(Probe):
    """Curvature of a loss as a function of the backbone's weights.

    The loss is the mean cross-entropy, over `images` training images, of a logistic regression that
    was fitted on the frozen features. The classifier is then fixed. Its regularisation is the same
    for every backbone, not chosen on a validation split: with another C the loss has another
    curvature. The network is in evaluation mode, so the loss does not depend on how the images are
    grouped or ordered. It is not the loss of the pre-training, whose head is dropped at export, so
    the gradient is not zero, and the Hessian can have negative eigenvalues.

    Values:
        loss: this loss at the exported weights.
        largest Hessian eigenvalue: by Lanczos iteration.
        Hessian trace: Hutchinson's estimate.
        sharpness, radius R: loss(w + e) - loss(w), where e is in the direction of the gradient and
            |e| = R |w| (the inner step of sharpness-aware minimisation, Foret et al., ICLR 2021).
        loss increase, distance D: mean of loss(w + D d) - loss(w) over random directions d and -d,
            where every filter of d has the norm of the same filter of w (Li et al., NeurIPS 2018).

    Lower is flatter. A layer followed by BatchNorm can be scaled without a change of the outputs;
    this changes the Hessian, but not the loss increase. Compare the eigenvalue and the trace only
    between networks of one architecture and similar weight norms. Pham et al. (arXiv 2206.08491)
    report flatter minima after self-distillation.

    Args:
        images: number of training images, evenly spaced among those of the split.
        iterations: largest number of Lanczos iterations.
        traces: number of random vectors for the trace.
        radii: values of R.
        distances: values of D.
        directions: number of random directions d.
        c: C of the logistic regression, the inverse strength of its regularisation.
        max_iter: largest number of iterations of the solver.
        tolerance: relative change of the eigenvalue at which the iteration ends.
    """

    reads = frozenset({"classes", "backbone"})
    splits = ("train",)

    def __init__(
        self,
        images: Count = 256,
        iterations: Count = 30,
        traces: Count = 10,
        radii: Positives = (0.001,),
        distances: Positives = (0.1, 0.3),
        directions: Count = 5,
        c: Positive = 0.1,
        max_iter: Count = 500,
        tolerance: Positive = 1e-3,
    ) -> None:
        self.images, self.iterations, self.traces = int(images), int(iterations), int(traces)
        self.radii, self.distances = list(radii), list(distances)
        self.directions, self.tolerance = int(directions), float(tolerance)
        self.c, self.max_iter = float(c), int(max_iter)

    def measure(self, data: Inputs) -> Measured:
        import torch

        from kdep_bench.probes import hessian

        assert data.network is not None
        train = data.splits["train"]
        classifier = logistic(self.c, self.max_iter)
        classifier.fit(train.post_activation.astype(np.float64), train.labels)
        pixels, labels = _images(data, train, self.images)
        loss = _curvature(data.network, classifier, pixels, labels)
        at_weights, generator = loss.loss(), torch.Generator().manual_seed(0)
        values = {"loss": Value(at_weights)}
        start = hessian.random_signs(loss.parameters, generator)
        eigenvalue, change = hessian.largest_eigenvalue(
            loss.product, start, self.iterations, self.tolerance
        )
        data.progress(1, 3, "Hessian")
        values["largest Hessian eigenvalue"] = Value(eigenvalue, "smaller")
        signs = (hessian.random_signs(loss.parameters, generator) for _ in range(self.traces))
        trace, error = hessian.trace(loss.product, signs)
        data.progress(2, 3, "Hessian")
        values["Hessian trace"] = Value(trace, "smaller")
        gradient = loss.gradient()
        length = hessian.norm(tuple(p.detach() for p in loss.parameters))
        unit = hessian.scaled(gradient, length / max(hessian.norm(gradient), 1e-30))
        for radius in self.radii:
            increase = hessian.loss_at(loss, unit, radius) - at_weights
            values[f"sharpness, radius {radius:g}"] = Value(increase, "smaller")
        directions = [
            hessian.filter_direction(loss.parameters, generator) for _ in range(self.directions)
        ]
        for distance in self.distances:
            losses = [
                hessian.loss_at(loss, d, sign * distance) for d in directions for sign in (-1, 1)
            ]
            increase = float(np.mean(losses)) - at_weights
            values[f"loss increase, distance {distance:g}"] = Value(increase, "smaller")
        note = (
            f"{len(labels)} images; last relative change of the eigenvalue {change:.1g}; standard "
            f"error of the trace {error:.2g}"
        )
        return Measured(values, (note,))


def _images(data: Inputs, train: Features, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, px, px, 3] uint8, labels [N]) of evenly spaced training images.

    Raises:
        KdepError: the split has changed since its features were extracted.
    """
    assert data.images is not None
    rows = np.unique(np.linspace(0, len(train) - 1, min(count, len(train))).round().astype(int))
    parts, start = [], 0
    for batch in data.images("train"):
        inside = rows[(rows >= start) & (rows < start + len(batch))]
        parts.append(batch[inside - start])
        start += len(batch)
    if start != len(train):
        raise KdepError(
            f"the train split has {start} images now, but its features are of {len(train)}",
            fix="run the suite again with --force features",
        )
    return np.concatenate(parts), train.labels[rows]


def _curvature(network: Any, classifier: Any, pixels: np.ndarray, labels: np.ndarray) -> Any:
    """The hessian.Curvature of the classifier's mean cross-entropy.

    Args:
        network: the backbone, in evaluation mode.
        classifier: a fitted pipeline of `linear.logistic`.
        pixels: [N, px, px, 3] uint8.
        labels: [N] class numbers.
    """
    import torch
    from torch.nn import functional as F

    from kdep_bench.data.normalisation import MEAN, STD
    from kdep_bench.devices import compute_device
    from kdep_bench.networks.backbone import pool
    from kdep_bench.probes.hessian import Curvature

    device = compute_device()
    network = network.to(device)
    parameters = [p.requires_grad_(True) for p in network.parameters()]
    dtype = parameters[0].dtype
    mean, std = (torch.tensor(v, device=device, dtype=dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    weight, bias = (torch.from_numpy(a).to(device, dtype) for a in linear_layer(classifier))

    def part(start: int) -> Any:
        images = torch.from_numpy(np.ascontiguousarray(pixels[start : start + PART]))
        x = (images.to(device, dtype).permute(0, 3, 1, 2) - mean) / std
        y = torch.from_numpy(labels[start : start + PART]).to(device, torch.int64)

        def total() -> torch.Tensor:
            out = network(x)
            maps = out[-1] if isinstance(out, (tuple, list)) else out
            return F.cross_entropy(F.linear(pool(maps), weight, bias), y, reduction="sum")

        return total

    return Curvature([part(i) for i in range(0, len(labels), PART)], len(labels), parameters)


def linear_layer(classifier: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight [C, D] and bias [C] of a fitted pipeline of standardisation and logistic regression.

    Two classes have one row of coefficients in scikit-learn; the other class has the logit 0.
    """
    scaler, model = (step for _, step in classifier.steps)
    weight = model.coef_ / scaler.scale_
    bias = model.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:
        weight = np.concatenate([np.zeros_like(weight), weight])
        bias = np.concatenate([np.zeros_like(bias), bias])
    return weight, bias

"""The curvature measures on functions whose Hessian is known, and the probe on a small network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.probes import flatness, hessian
from kdep_bench.probes.base import Features, Inputs
from kdep_bench.probes.flatness import Flatness, linear_layer
from tests.objectives import tiny

IMAGES, CLASSES = 24, 3


def symmetric(eigenvalues: list[float]) -> Tensor:
    """A symmetric float64 matrix with these eigenvalues."""
    torch.manual_seed(0)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


def quadratic(matrix: Tensor) -> hessian.Curvature:
    """w^T A w / 2 as the mean of two samples with A / 2 and 3 A / 2, over w = (w1, w2)."""
    n = len(matrix)
    w = [torch.randn(2, dtype=torch.float64), torch.randn(n - 2, dtype=torch.float64)]
    for p in w:
        p.requires_grad_(True)

    def part(scale: float) -> Any:
        """The loss of one sample, as a function without arguments."""
        return lambda: scale * torch.cat(w) @ matrix @ torch.cat(w) / 2

    return hessian.Curvature([part(0.5), part(1.5)], 2, w)


@pytest.mark.parametrize("eigenvalues", [[5.0, 2.0, 1.0, -1.0], [3.0, 1.0, -2.0, -9.0]])
def test_the_largest_eigenvalue_and_the_trace_of_a_quadratic_are_exact(eigenvalues: list[float]):
    """Also if a negative eigenvalue has the largest magnitude."""
    loss = quadratic(symmetric(eigenvalues))
    start = hessian.random_signs(loss.parameters, torch.Generator().manual_seed(0))
    value, change = hessian.largest_eigenvalue(loss.product, start, 500, 1e-13)
    assert value == pytest.approx(eigenvalues[0], rel=1e-6)
    assert change < 1e-12  # four dimensions: exact after four products
    # v^T A v, averaged over all sign vectors, is the trace.
    signs = [
        (torch.tensor(s[:2], dtype=torch.float64), torch.tensor(s[2:], dtype=torch.float64))
        for s in itertools.product((-1.0, 1.0), repeat=4)
    ]
    estimate, error = hessian.trace(loss.product, signs)
    assert estimate == pytest.approx(sum(eigenvalues), rel=1e-9)
    assert error > 0
    w = torch.cat([p.detach() for p in loss.parameters])
    assert loss.loss() == pytest.approx(float(w @ symmetric(eigenvalues) @ w / 2), rel=1e-9)


def test_one_random_vector_gives_the_trace_of_a_diagonal_hessian():
    loss = quadratic(torch.diag(torch.tensor([4.0, 3.0, -2.0], dtype=torch.float64)))
    signs = hessian.random_signs(loss.parameters, torch.Generator().manual_seed(3))
    estimate, error = hessian.trace(loss.product, [signs])
    assert estimate == pytest.approx(5.0)
    assert np.isnan(error)


def network() -> tiny.TinyNet:
    """A float64 network with 200 parameters, in evaluation mode."""
    torch.manual_seed(0)
    net = tiny.TinyNet(channels=(2, 2, 2, 3)).double()
    norms: Any = net.norms
    for norm in norms:
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.1, 0.3)
        norm.eps = 0.0
    net.eval()
    return net


def images() -> np.ndarray:
    """[IMAGES, px, px, 3] uint8."""
    return tiny.batch(IMAGES, 0)["images"].permute(0, 2, 3, 1).contiguous().numpy()


def normalised(pixels: np.ndarray) -> Tensor:
    """The network's input [B, 3, px, px] in float64."""
    x = torch.from_numpy(pixels).double().permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def inputs(net: tiny.TinyNet, order: np.ndarray | None = None) -> Inputs:
    """Inputs of the probe whose training images have this order."""
    order = np.arange(IMAGES) if order is None else order
    with torch.no_grad():
        after = net(normalised(images()))[-1].mean((2, 3)).numpy()
    labels = (np.argsort(np.argsort(after[:, 0])) * CLASSES) // IMAGES
    train = Features(after[order], after[order], labels[order])

    def batches(split: str) -> Iterator[np.ndarray]:
        """The training images in five batches."""
        assert split == "train"
        yield from np.array_split(images()[order], 5)

    return Inputs({"train": train}, images=batches, network=net)


OPTIONS: dict[str, Any] = dict(images=IMAGES, iterations=400, tolerance=1e-12, traces=4, c=1.0)


def reference(net: tiny.TinyNet) -> tuple[np.ndarray, Any, Tensor]:
    """(Hessian of the loss by autograd, the loss as a function of w, the weights w); float64."""
    data = inputs(net)
    train = data.splits["train"]
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
    model.fit(train.post_activation.astype(np.float64), train.labels)
    scaler, logistic = model[0], model[1]
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]
    x, y = normalised(images()), torch.from_numpy(train.labels)
    w = torch.cat([p.detach().flatten() for p in net.parameters()])

    def loss(w: Tensor) -> Tensor:
        """Mean cross-entropy of a logistic regression on the standardised features."""
        parts = torch.split(w, [s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        feature = torch.func.functional_call(net, named, (x,))[-1].mean((2, 3))
        standard = (feature - torch.from_numpy(scaler.mean_)) / torch.from_numpy(scaler.scale_)
        logits = standard @ torch.from_numpy(logistic.coef_).T + torch.from_numpy(
            logistic.intercept_
        )
        return -F.log_softmax(logits, 1)[torch.arange(len(y)), y].mean()

    return torch.autograd.functional.hessian(loss, w).numpy(), loss, w


def test_the_probe_equals_the_full_hessian_of_its_loss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flatness, "PART", 7)  # parts of unequal size
    net = network()
    h, loss, w = reference(net)
    measured = Flatness(**OPTIONS, radii=(0.05,)).measure(inputs(net))
    values = {k: v.value for k, v in measured.values.items()}
    assert values["loss"] == pytest.approx(float(loss(w)), rel=1e-9)
    eigenvalues = np.linalg.eigvalsh(h)
    assert values["largest Hessian eigenvalue"] == pytest.approx(eigenvalues[-1], rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    parameters = list(net.parameters())
    hessian.random_signs(parameters, generator)  # the start of the Lanczos iteration
    signs = [
        torch.cat([s.flatten() for s in hessian.random_signs(parameters, generator)]).numpy()
        for _ in range(4)
    ]
    assert values["Hessian trace"] == pytest.approx(np.mean([s @ h @ s for s in signs]), rel=1e-9)
    w = w.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(w), w)
    w = w.detach()
    moved = w + 0.05 * w.norm() * gradient / gradient.norm()
    assert values["sharpness, radius 0.05"] == pytest.approx(float(loss(moved) - loss(w)), rel=1e-6)
    directions = [
        torch.cat([d.flatten() for d in hessian.filter_direction(parameters, generator)])
        for _ in range(5)
    ]
    for distance in (0.1, 0.3):
        losses = [float(loss(w + s * distance * d)) for d in directions for s in (1, -1)]
        expected = np.mean(losses) - float(loss(w))
        assert values[f"loss increase, distance {distance}"] == pytest.approx(expected, rel=1e-6)
    assert f"{IMAGES} images" in measured.notes[0]


def test_the_order_of_the_images_does_not_change_the_measures():
    net = network()
    order = np.random.default_rng(0).permutation(IMAGES)
    options = {**OPTIONS, "iterations": 20, "traces": 2}
    first, second = (Flatness(**options).measure(inputs(net, o)).values for o in (None, order))
    for name, value in first.items():
        assert second[name].value == pytest.approx(value.value, rel=1e-5, abs=1e-9), name


def test_the_measures_leave_the_weights_unchanged():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    Flatness(images=8, iterations=2, traces=2, c=1.0).measure(inputs(net))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_scaled_layer_before_a_norm_changes_the_hessian_but_no_filter_normalised_slice():
    """The outputs are unchanged, so a measure of flatness that differs measures the scale."""
    options = {**OPTIONS, "iterations": 200}
    first = Flatness(**options).measure(inputs(network())).values
    net = network()
    layers: Any = zip(net.convs, net.norms, strict=True)
    with torch.no_grad():
        for conv, norm in layers:
            conv.weight.mul_(4.0)
            norm.running_mean.mul_(4.0)
            norm.running_var.mul_(16.0)
    second = Flatness(**options).measure(inputs(net)).values
    assert second["loss"].value == pytest.approx(first["loss"].value, rel=1e-6)
    for distance in ("0.1", "0.3"):
        name = f"loss increase, distance {distance}"
        assert second[name].value == pytest.approx(first[name].value, rel=1e-6)
    trace, scaled_trace = (v["Hessian trace"].value for v in (first, second))
    assert abs(scaled_trace / trace - 1) > 0.1


def test_a_filter_direction_has_the_norms_of_the_filters_and_no_bias():
    like = [torch.randn(4, 3, 3, 3), torch.randn(4)]
    direction = hessian.filter_direction(like, torch.Generator().manual_seed(0))
    torch.testing.assert_close(direction[0].flatten(1).norm(dim=1), like[0].flatten(1).norm(dim=1))
    assert not direction[1].any()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_folded_linear_layer_has_the_classifier_s_probabilities(classes: int):
    rng = np.random.default_rng(0)
    x, y = rng.normal(2.0, 3.0, (60, 4)), np.arange(60) % classes
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    weight, bias = linear_layer(model)
    logits = torch.from_numpy(x @ weight.T + bias)
    np.testing.assert_allclose(logits.softmax(1).numpy(), model.predict_proba(x), rtol=1e-9)


def test_a_split_that_changed_since_its_features_is_refused():
    data = inputs(network())
    assert data.images is not None
    shorter = list(data.images("train"))[:-1]
    with pytest.raises(KdepError, match="has 20 images now, but its features are of 24"):
        Flatness(**OPTIONS).measure(replace(data, images=lambda _: iter(shorter)))

"""Curvature of a loss: products with its Hessian, the largest eigenvalue, the trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Vector = tuple[Tensor, ...]  # one tensor per parameter, of the shape of the parameter
Product = Callable[[Vector], Vector]  # H v for a vector v


class Curvature:
    """Loss, gradient and Hessian of a mean loss over samples.

    The samples are processed in parts, so that the graph of only one part is in memory.

    Args:
        sums: one function per part of the samples; it returns the sum of the losses of its samples,
            a scalar with a graph to `parameters`.
        count: number of samples of all parts.
        parameters: the variables. The Hessian is that of the mean loss over all samples.
    """

    def __init__(
        self, sums: Sequence[Callable[[], Tensor]], count: int, parameters: Sequence[Tensor]
    ) -> None:
        self.sums, self.count, self.parameters = list(sums), count, list(parameters)

    @torch.no_grad()
    def loss(self) -> float:
        """The mean loss."""
        return math.fsum(float(part()) for part in self.sums) / self.count

    def gradient(self) -> Vector:
        """The gradient of the mean loss."""
        total = self._zeros()
        for part in self.sums:
            _add(total, torch.autograd.grad(part(), self.parameters, materialize_grads=True))
        return tuple(g / self.count for g in total)

    def product(self, v: Vector) -> Vector:
        """H v, by differentiating the inner product of gradient and v (Pearlmutter 1994)."""
        total = self._zeros()
        for part in self.sums:
            gradient = torch.autograd.grad(
                part(), self.parameters, create_graph=True, materialize_grads=True
            )
            inner = sum((g * x).sum() for g, x in zip(gradient, v, strict=True))
            assert isinstance(inner, Tensor)
            _add(total, torch.autograd.grad(inner, self.parameters, materialize_grads=True))
        return tuple(h / self.count for h in total)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.parameters]


def _add(total: Sequence[Tensor], values: Iterable[Tensor]) -> None:
    """Adds `values` to `total` in place."""
    for t, v in zip(total, values, strict=True):
        t += v.detach()


def dot(a: Vector, b: Vector) -> float:
    """The inner product of two vectors."""
    return math.fsum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def norm(v: Vector) -> float:
    """The Euclidean norm."""
    return math.sqrt(dot(v, v))


def scaled(v: Vector, factor: float) -> Vector:
    """The vector times a number."""
    return tuple(x * factor for x in v)


def largest_eigenvalue(
    product: Product, start: Vector, iterations: int, tolerance: float = 1e-3
) -> tuple[float, float]:
    """The largest eigenvalue of a symmetric matrix, which may be negative, by Lanczos iteration.

    Each iteration needs one product and adds one row to a tridiagonal matrix, whose largest
    eigenvalue is returned. The vectors are not reorthogonalised, so only three are in memory; the
    largest eigenvalue converges nevertheless.

    Args:
        product: product with the matrix.
        start: a vector that is not orthogonal to the eigenvector.
        iterations: largest number of products.
        tolerance: relative change between two iterations at which the iteration ends.

    Returns:
        (the eigenvalue, its last relative change; infinite after one iteration).
    """
    v, previous, beta = scaled(start, 1 / norm(start)), scaled(start, 0.0), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    value, change = math.nan, math.inf
    for _ in range(iterations):
        image = product(v)
        alpha = dot(v, image)
        diagonal.append(alpha)
        new = _largest_of_tridiagonal(diagonal, off_diagonal)
        if len(diagonal) > 1:
            change = abs(new - value) / max(abs(new), 1e-30)
        value = new
        remainder = tuple(
            h - alpha * x - beta * y for h, x, y in zip(image, v, previous, strict=True)
        )
        beta = norm(remainder)
        if beta <= 1e-7 * norm(image):  # `v` and its images are an invariant space
            return value, 0.0
        if change < tolerance:
            break
        off_diagonal.append(beta)
        v, previous = scaled(remainder, 1 / beta), v
    return value, change


def _largest_of_tridiagonal(diagonal: Sequence[float], off_diagonal: Sequence[float]) -> float:
    """The largest eigenvalue of a symmetric tridiagonal matrix."""
    side = torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), 1)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + side + side.T
    return float(torch.linalg.eigvalsh(matrix)[-1])


def trace(product: Product, vectors: Iterable[Vector]) -> tuple[float, float]:
    """The trace of a symmetric matrix, the mean of v^T H v over random signs v (Hutchinson 1990).

    Returns:
        (the estimate, its standard error; NaN for one vector).
    """
    values = [dot(v, product(v)) for v in vectors]
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def random_signs(like: Sequence[Tensor], generator: torch.Generator) -> Vector:
    """A vector of -1 and 1, drawn on the CPU, so that every device has the same."""
    return tuple(
        (2 * torch.randint(0, 2, p.shape, generator=generator) - 1).to(p.device, p.dtype)
        for p in like
    )


def filter_direction(like: Sequence[Tensor], generator: torch.Generator) -> Vector:
    """A random direction in which every filter has the norm of the same filter of `like`.

    A filter is the part of a weight that computes one output channel. Parameters with fewer than
    two dimensions (biases, scales of norms) are not changed. So if a layer is scaled and the norm
    after it undoes this, the effect of the direction on the loss is the same.

    Source: Li et al., NeurIPS 2018, "Visualizing the Loss Landscape of Neural Nets", section 4.
    """
    direction = []
    for p in like:
        if p.ndim < 2:
            direction.append(torch.zeros_like(p))
            continue
        noise = torch.randn(p.shape, generator=generator).to(p.device, p.dtype).flatten(1)
        noise = noise / noise.norm(dim=1, keepdim=True)
        direction.append((noise * p.detach().flatten(1).norm(dim=1, keepdim=True)).view_as(p))
    return tuple(direction)


@torch.no_grad()
def loss_at(curvature: Curvature, step: Vector, factor: float) -> float:
    """The mean loss at the parameters + factor * step; the parameters are then restored."""
    original = [p.detach().clone() for p in curvature.parameters]
    try:
        for p, s in zip(curvature.parameters, step, strict=True):
            p.add_(s, alpha=factor)
        return curvature.loss()
    finally:
        for p, value in zip(curvature.parameters, original, strict=True):
            p.copy_(value)

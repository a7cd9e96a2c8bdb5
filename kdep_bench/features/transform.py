"""Transforms of the aligned teacher feature into the regression target, without parameters.

`a` below is the aligned feature [B, Ds], where Ds is the number of channels of the student's pooled
feature and Dt that of the teacher's. A method's config names a transform by the dotted path of
its class, `transform=dict(type=...)`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdep_bench.bounds import AtLeastOne, Positive
from kdep_bench.errors import KdepError


class Transform(nn.Module):
    """A fixed map of aligned features [B, Ds] -> [B, Ds].

    Attributes:
        required_args: attributes of the fitted `Basis` (`std`, `covariance`, `raw_std`) that are
            passed to the constructor in addition to the config's arguments.
    """

    required_args: ClassVar[tuple[str, ...]] = ()

    def forward(self, a: Tensor) -> Tensor:
        raise NotImplementedError


class NoTransform(Transform):
    """The identity ("SVD without PTS")."""

    def forward(self, a: Tensor) -> Tensor:
        return a


class PowerTemperature(Transform):
    """Power temperature scaling: sign(a) * |a / T| ** (1 / n).

    Source: KDEP, CVMI-Lab/KDEP `src/train_distill.py`, with its defaults T=0.1, n=3. The function
    is odd and monotone, and the identity at T = n = 1. For channels whose distributions differ only
    in scale, a std ratio r becomes r ** (1 / n).

    Args:
        T: temperature, > 0, in units of the feature.
        n: exponent, >= 1.
    """

    def __init__(self, T: Positive = 0.1, n: AtLeastOne = 3.0) -> None:
        super().__init__()
        if not (T > 0 and n >= 1):
            raise KdepError(
                f"power temperature scaling has T={T}, n={n}",
                expected="T > 0 and n >= 1",
                fix="correct T and n in the method's `transform`",
            )
        self.T, self.n = float(T), float(n)

    def forward(self, a: Tensor) -> Tensor:
        return a.sign() * (a.abs() / self.T) ** (1.0 / self.n)


class SignedPairs(Transform):
    """Two channels for each of the first Ds / 2 components g: all max(g, 0), then all max(-g, 0).

    This target is for a student's feature after a ReLU, which is non-negative and cannot represent
    a signed target (see `kdep_bench/objectives/signs.py`). g is the component after power
    temperature scaling with T and n (n = 1: multiplied by 1 / T only).

    `forward` raises KdepError for an odd number of aligned channels.
    """

    def __init__(self, T: float = 1.0, n: float = 1.0) -> None:
        super().__init__()
        self.power = PowerTemperature(T, n)

    def forward(self, a: Tensor) -> Tensor:
        if a.shape[1] % 2:
            raise KdepError(
                f"the aligned feature has {a.shape[1]} channels, but SignedPairs needs an even "
                "number",
                fix="choose another transform or student",
            )
        g = self.power(a[:, : a.shape[1] // 2])
        return torch.cat([g.relu(), (-g).relu()], 1)


class Whitening(Transform):
    """Uncorrelated channels of unit variance: a -> L^(-1/2) U' a, with U L U' the covariance of a.

    PCA whitening. After an SVD alignment the channels are uncorrelated, so U is the identity and
    every channel is divided by its standard deviation. Source: the first step of the "variance
    matching" in the comments of CVMI-Lab/KDEP `src/resnet.py`, which also multiplies by 500.

    Args:
        covariance: [Ds, Ds] of the aligned feature over the alignment samples, of full rank.

    Raises:
        KdepError: a covariance that is not of full rank.
    """

    required_args = ("covariance",)
    matrix: Tensor

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        values, u = principal_axes(covariance)
        if not float(values.min()) > 0:
            raise KdepError(
                f"{int((values <= 0).sum())} of {len(values)} directions of the aligned feature "
                "have no variance, so they cannot be whitened",
                fix="choose a narrower student, the alignment svd, or another transform",
            )
        self.register_buffer("matrix", (u / values.sqrt()).float())

    def forward(self, a: Tensor) -> Tensor:
        return a @ self.matrix


class StdMatch(Transform):
    """Rescales the aligned channels to new standard deviations (stds).

    By default, the k-th largest std of the aligned channels is replaced by the k-th largest std of
    the raw feature. With a `ratio` r, the new stds rise linearly with the old std s, from 1 for the
    smallest to r for the largest: (max - r min + (r - 1) s) / (max - min).

    Source: CVMI-Lab/KDEP `src/resnet.py`, comments "Var matching", step 2, methods 2 and 1, with r
    = 2.98 or 4.57. The factor 357 there is not needed with the automatic loss weight.

    Args:
        std: [Ds] of the aligned feature over the alignment samples, all positive.
        raw_std: [Dt] of the raw feature, Dt >= Ds.
        ratio: std ratio after the transform, >= 1; None for the stds of the raw feature.

    Raises:
        KdepError: a channel without variance, a ratio below 1, or no `raw_std` without a `ratio`.
    """

    required_args = ("std", "raw_std")
    scale: Tensor

    def __init__(
        self, std: Tensor, raw_std: Tensor | None, ratio: AtLeastOne | None = None
    ) -> None:
        super().__init__()
        s = std.double()
        if not bool((s > 0).all()):
            raise KdepError(
                f"{int((s <= 0).sum())} of {len(s)} channels of the aligned feature have no "
                "variance, so it cannot be matched",
                fix="choose a narrower student, the alignment svd, or another transform",
            )
        if ratio is not None:
            if not ratio >= 1:
                raise KdepError(
                    f"variance matching has ratio={ratio}",
                    expected="at least 1",
                    fix="correct `ratio` in the method's `transform`",
                )
            low, high = s.min(), s.max()
            new_std = (high - ratio * low + (ratio - 1) * s) / (high - low).clamp(min=1e-30)
            new_std = torch.where(high > low, new_std, torch.ones_like(s))
        else:
            new_std = torch.empty_like(s)
            new_std[s.argsort(descending=True, stable=True)] = _largest(raw_std, len(s))
        self.register_buffer("scale", (new_std / s).float())

    def forward(self, a: Tensor) -> Tensor:
        return a * self.scale


def _largest(raw_std: Tensor | None, count: int) -> Tensor:
    """The `count` largest raw channel stds, largest first; KdepError if fewer are above 0."""
    if raw_std is None:
        raise KdepError(
            "the alignment was computed by an older version and has no standard deviations of the "
            "teacher's channels (channels.pt)",
            fix="rerun that stage (--force align), or set `ratio` in the method's `transform`",
        )
    largest = raw_std.double().sort(descending=True).values[:count]
    if len(largest) < count or not bool((largest > 0).all()):
        raise KdepError(
            f"only {int((largest > 0).sum())} of the teacher's channels have variance, fewer than "
            f"the student's {count} channels",
            fix="set `ratio` in the method's `transform`",
        )
    return largest


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [D] and orthonormal axes [D, D] (columns) of a covariance, both float64.

    Variances below rounding noise are set to 0. The axes of a diagonal covariance are the channels,
    in their given order.
    """
    c = covariance.double()
    if bool((c == c.diagonal().diag()).all()):
        values, axes = c.diagonal(), torch.eye(len(c), dtype=c.dtype)
    else:
        values, axes = torch.linalg.eigh(c)
        values, axes = values.flip(0), axes.flip(1)
    # The rounding error of float64 sums of D products is about D ulp of the largest.
    noise = values.max() * len(c) * torch.finfo(c.dtype).eps
    return torch.where(values > noise, values, torch.zeros_like(values)), axes


def std_ratio(std: Tensor) -> float:
    """Largest channel standard deviation divided by the smallest; infinite if one is 0."""
    low, high = float(std.min()), float(std.max())
    return high / low if low > 0 else math.inf


class Moments:
    """Streaming mean and covariance in float64: one pass, memory O(D^2).

    Chan et al. 1979, "Updating formulae and a pairwise algorithm": each batch is centred at its own
    mean before it is merged, which avoids cancellation for features far from zero.

    Attributes:
        n: number of features so far.
        mean: [D] float64.
        scatter: [D, D] float64, the sum of (x - mean)(x - mean)' over the features.
    """

    def __init__(self, width: int) -> None:
        self.n = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x_BD: Tensor) -> None:
        """Adds a batch [B, D]; raises KdepError if a value is NaN or infinite."""
        x = x_BD.double()
        if not bool(torch.isfinite(x).all()):
            raise KdepError(
                "a teacher feature is NaN or infinite",
                fix="check the teacher's weights and normalisation",
            )
        b = len(x)
        mean = x.mean(0)
        centred = x - mean
        delta = mean - self.mean
        total = self.n + b
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(delta, delta, alpha=self.n * b / total)
        self.mean += delta * (b / total)
        self.n = total

    @property
    def covariance(self) -> Tensor:
        """[D, D] population covariance: divided by N, so that an SVD channel's std is s/sqrt(N)."""
        return self.scatter / self.n

    @property
    def std(self) -> Tensor:
        """[D] population standard deviations."""
        return self.covariance.diagonal().clamp(min=0).sqrt()

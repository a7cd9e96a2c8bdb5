"""What is done to an aligned teacher feature before the student regresses it.

`a` below is the aligned feature [B, Ds]. Every transform is fixed before training: no parameters,
no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError


class NoTransform(nn.Module):
    """The aligned feature as it is ("SVD without PTS")."""

    def forward(self, a: Tensor) -> Tensor:
        return a


class PowerTemperature(nn.Module):
    """Power temperature scaling: sign(a) * |a / T| ** (1 / n).

    Source: KDEP, CVMI-Lab/KDEP `src/train_distill.py`; defaults T=0.1, n=3 there. Odd, monotone,
    the identity at T = n = 1; a Std Ratio r between channels of one shape becomes r ** (1 / n).

    Args:
        T: temperature, > 0, in units of the feature.
        n: exponent, >= 1.
    """

    def __init__(self, T: float = 0.1, n: float = 3.0) -> None:
        super().__init__()
        if not (T > 0 and n >= 1):
            raise KdepError(f"power temperature scaling got T={T}, n={n}", "T > 0 and n >= 1")
        self.T, self.n = float(T), float(n)

    def forward(self, a: Tensor) -> Tensor:
        return a.sign() * (a.abs() / self.T) ** (1.0 / self.n)


class Whitening(nn.Module):
    """Every channel divided by its standard deviation over the fitting rows.

    After SVD the channels are uncorrelated, so this whitens. Needs `std` [Ds] from the alignment.
    """

    std: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        if not bool((std > 0).all()):
            raise KdepError("a channel of the aligned feature never varies", "positive variance")
        self.register_buffer("std", std.float())

    def forward(self, a: Tensor) -> Tensor:
        return a / self.std


def std_ratio(std: Tensor) -> float:
    """Largest channel standard deviation over the smallest (KDEP's Std Ratio); inf if one is 0."""
    low, high = float(std.min()), float(std.max())
    return high / low if low > 0 else math.inf


class Moments:
    """Streaming mean and covariance in float64: one pass, memory O(D^2).

    Chan et al. 1979, "Updating formulae and a pairwise algorithm": batches are merged with their
    own means, so nothing cancels for features far from zero.
    """

    def __init__(self, width: int) -> None:
        self.n = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x_BD: Tensor) -> None:
        """Takes a batch; raises KdepError when a value is NaN or infinite."""
        x = x_BD.double()
        if not bool(torch.isfinite(x).all()):
            raise KdepError(
                "a teacher feature is NaN or infinite", "finite features", "check the teacher"
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
        """[D, D] population covariance (divided by N: after SVD a channel's std is s/sqrt(N))."""
        return self.scatter / self.n

    @property
    def std(self) -> Tensor:
        """[D] population standard deviations."""
        return self.covariance.diagonal().clamp(min=0).sqrt()

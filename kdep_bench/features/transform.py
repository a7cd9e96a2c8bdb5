"""What is done to an aligned teacher feature before the student regresses it.

`a` below is the aligned feature [B, Ds]. Every transform is fixed before training: no parameters,
no gradient. It is found by the dotted path of its class, `transform=dict(type=...)` in a method's
config; what it has to know of the fitted alignment it names in `required_args`.
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

    `required_args` names attributes of the fitted `Basis` (`std`, `covariance`, `raw_std`) that the
    constructor gets beside the config's own arguments.
    """

    required_args: ClassVar[tuple[str, ...]] = ()

    def forward(self, a: Tensor) -> Tensor:
        raise NotImplementedError


class NoTransform(Transform):
    """The aligned feature as it is ("SVD without PTS")."""

    def forward(self, a: Tensor) -> Tensor:
        return a


class PowerTemperature(Transform):
    """Power temperature scaling: sign(a) * |a / T| ** (1 / n).

    Source: KDEP, CVMI-Lab/KDEP `src/train_distill.py`; defaults T=0.1, n=3 there. Odd, monotone,
    the identity at T = n = 1; a Std Ratio r between channels of one shape becomes r ** (1 / n).

    Args:
        T: temperature, > 0, in units of the feature.
        n: exponent, >= 1.
    """

    def __init__(self, T: Positive = 0.1, n: AtLeastOne = 3.0) -> None:
        super().__init__()
        if not (T > 0 and n >= 1):
            raise KdepError(
                f"power temperature scaling has T={T}, n={n}", expected="T > 0 and n >= 1"
            )
        self.T, self.n = float(T), float(n)

    def forward(self, a: Tensor) -> Tensor:
        return a.sign() * (a.abs() / self.T) ** (1.0 / self.n)


class SignedPairs(Transform):
    """The first half of the components, each as two channels: max(g, 0), then max(-g, 0).

    For a student's feature after its ReLU, which is non-negative and cannot follow a signed target:
    see `kdep_bench/objectives/signs.py` for what each form can represent. g is the component after
    power temperature scaling with T and n; n = 1 leaves its shape as it is.

    Raises KdepError for an odd number of aligned channels.
    """

    def __init__(self, T: float = 1.0, n: float = 1.0) -> None:
        super().__init__()
        self.power = PowerTemperature(T, n)

    def forward(self, a: Tensor) -> Tensor:
        if a.shape[1] % 2:
            raise KdepError(
                f"the aligned feature has {a.shape[1]} channels, an odd number that cannot be "
                "split into pairs",
                fix="choose another transform or student",
            )
        g = self.power(a[:, : a.shape[1] // 2])
        return torch.cat([g.relu(), (-g).relu()], 1)


class Whitening(Transform):
    """Uncorrelated channels of unit variance: a -> L^(-1/2) U' a, with U L U' the covariance of a.

    PCA whitening; after SVD, whose channels are uncorrelated already, U is the identity and every
    channel is divided by its standard deviation. The first step of the "variance matching" in the
    comments of CVMI-Lab/KDEP `src/resnet.py`, which divides by the singular values (times 500).

    Args:
        covariance: [Ds, Ds] of the aligned feature over the fitting rows; of full rank.
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
    """Gives the aligned channels the spread that the teacher's raw channels had.

    After SVD the channel stds fall as the singular values do; this sets them by rank instead. By
    default the k-th largest becomes the k-th largest std of the raw feature ("match to original
    variance"); with `ratio` r they run from r down to 1, linear in the old std s:
    (max - r min + (r - 1) s) / (max - min).

    Source: CVMI-Lab/KDEP `src/resnet.py`, comments "Var matching", step 2, methods 2 and 1 (r =
    2.98 or 4.57 there, then times 357: a factor that the loss weight's rule makes needless).

    Args:
        std: [Ds] of the aligned feature over the fitting rows, all positive.
        raw_std: [Dt] of the raw feature, Dt >= Ds.
        ratio: Std Ratio to reach, >= 1; None for the raw feature's own stds.
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
            wanted = (high - ratio * low + (ratio - 1) * s) / (high - low).clamp(min=1e-30)
            wanted = torch.where(high > low, wanted, torch.ones_like(s))
        else:
            wanted = torch.empty_like(s)
            wanted[s.argsort(descending=True, stable=True)] = _largest(raw_std, len(s))
        self.register_buffer("scale", (wanted / s).float())

    def forward(self, a: Tensor) -> Tensor:
        return a * self.scale


def _largest(raw_std: Tensor | None, count: int) -> Tensor:
    """The `count` largest raw channel stds, largest first."""
    if raw_std is None:
        raise KdepError(
            "the alignment stage is of an older version and has no standard deviations of the "
            "teacher's channels (channels.pt beside basis.pt)",
            fix="rerun that stage (--force align), or give StdMatch a `ratio`",
        )
    found = raw_std.double().sort(descending=True).values[:count]
    if len(found) < count or not bool((found > 0).all()):
        raise KdepError(
            f"only {int((found > 0).sum())} of the teacher's channels have variance, fewer than "
            f"the student's {count} channels",
            fix="give StdMatch a `ratio`",
        )
    return found


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [D] and orthonormal axes [D, D] (columns) of a covariance, noise set to 0.

    The axes of a diagonal covariance are the channels, in their own order.
    """
    c = covariance.double()
    if bool((c == c.diagonal().diag()).all()):
        values, axes = c.diagonal(), torch.eye(len(c), dtype=c.dtype)
    else:
        values, axes = torch.linalg.eigh(c)
        values, axes = values.flip(0), axes.flip(1)
    # float64 sums of D products leave about D ulp of the largest.
    noise = values.max() * len(c) * torch.finfo(c.dtype).eps
    return torch.where(values > noise, values, torch.zeros_like(values)), axes


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
        """[D, D] population covariance (divided by N: after SVD a channel's std is s/sqrt(N))."""
        return self.scatter / self.n

    @property
    def std(self) -> Tensor:
        """[D] population standard deviations."""
        return self.covariance.diagonal().clamp(min=0).sqrt()

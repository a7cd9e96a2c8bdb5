"""Fixed aligners: linear maps from the teacher's width Dt to the student's Ds, fitted once.

All aligners compute z = (f - mean) V, with different V [Dt, Ds]. A method's config names an aligner
by the dotted path of its class, `align=dict(type=...)`; 'svd' is short for `Svd`.

Sources: CVMI-Lab/KDEP `src/gen_svd_weights.py` (SVD) and the alternatives in the comments of
`src/resnet.py`, class ResNet_feat_svd_pre_relu: channels of largest variance, interpolation, random
and smallest singular vectors. In that code, selected and interpolated channels keep their mean;
here every aligner subtracts it, so that the automatic loss weight is comparable between methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.features.basis import Basis
from kdep_bench.features.policies import POLICIES, check_widths
from kdep_bench.features.transform import Moments

# Eigenvalues below this fraction of the largest are rounding noise of float16 features
# (half precision carries about 2**-11 relative error, squared for a variance).
RANK_TOLERANCE = 2.0**-22


class Aligner(ABC):
    """Computes V from the moments of the teacher's features.

    Args:
        policy: what to do when Ds > Dt, one of `policies.POLICIES`; None raises KdepError.
        seed: seed of the random numbers, for aligners and policies that use any.
    """

    correlated = True  # whether the channels of z are correlated over the alignment samples
    # Eigenvalues [Dt] of the covariance, largest first; None if `fit` does not compute them.
    eigenvalues: Tensor | None = None

    def __init__(self, policy: str | None = None, seed: int = 0) -> None:
        check_widths(0, 0, policy)
        self.policy, self.seed = policy, seed

    @abstractmethod
    def components(self, moments: Moments, width: int) -> Tensor:
        """V [Dt, width] float64, for width <= Dt.

        Raises:
            KdepError: V cannot be computed, for example because the features have too low a rank.
        """

    def fit(self, moments: Moments, width: int) -> Basis:
        """The fitted basis for a student of width Ds = `width`.

        Raises:
            KdepError: Ds > Dt without a policy, too few features, features that are the same for
                every image, or an error of `components`.
        """
        dt = len(moments.mean)
        check_widths(width, dt, self.policy)
        directions = min(width, dt)
        check_enough_rows(moments, directions)
        v = self.components(moments, directions)
        if width > dt:
            v = v @ widening(str(self.policy), dt, width, self.seed)
        covariance = v.T @ moments.covariance @ v
        variance = covariance.diagonal().clamp(min=0)
        stored_covariance = covariance if self.correlated or width > dt else None
        return Basis(moments.mean, v, variance.sqrt(), stored_covariance, moments.std)


class Svd(Aligner):
    """The first Ds principal directions, as in KDEP: the rank-Ds map of least squared error.

    They are computed as eigenvectors of the covariance, which equal the right singular vectors of
    the centred features. z is not whitened.
    """

    correlated = False

    def components(self, moments: Moments, width: int) -> Tensor:
        self.eigenvalues, vectors = spectrum(moments)
        # With a policy and Ds >= Dt, a direction without variance is treated like a padded channel.
        if self.policy is None or width < len(moments.mean):
            checked_rank(self.eigenvalues, width, can_pad=width == len(moments.mean))
        return vectors[:, :width]


class SmallestBasis(Aligner):
    """The Ds principal directions of smallest variance that is above rounding noise."""

    correlated = False

    def components(self, moments: Moments, width: int) -> Tensor:
        values, vectors = spectrum(moments)
        rank = checked_rank(values, width)
        return vectors[:, rank - width : rank]


class RandomBasis(Aligner):
    """A seeded random orthonormal basis of Ds directions, drawn uniformly from all such bases.

    It explains Ds / Dt of the variance in expectation.
    """

    def components(self, moments: Moments, width: int) -> Tensor:
        return orthogonal(len(moments.mean), self.seed)[:, :width]


class TopVariance(Aligner):
    """Selects the Ds channels of largest variance, largest first."""

    def components(self, moments: Moments, width: int) -> Tensor:
        order = moments.std.argsort(descending=True, stable=True)[:width]
        varying = int((moments.std > 0).sum())
        if varying < width:
            raise KdepError(
                f"only {varying} of the teacher's {len(moments.mean)} channels vary over the "
                f"images, fewer than the student's {width} channels",
                fix="choose another alignment, such as svd, or a narrower student",
            )
        return _columns(len(moments.mean), order)


class Interpolate(Aligner):
    """1-D interpolation along the channels; a control, because their order has no meaning.

    Args:
        mode: 'nearest' (the public code's `torch.nn.functional.interpolate` default, which for
            2048 -> 512 keeps every fourth channel) or 'linear'.
        policy, seed: as in Aligner.
    """

    def __init__(self, mode: str = "nearest", policy: str | None = None, seed: int = 0) -> None:
        super().__init__(policy, seed)
        if mode not in ("nearest", "linear"):
            raise KdepError(
                f"the interpolation mode is {mode!r}",
                expected="'nearest' or 'linear'",
                fix="correct `mode` in the method's `align`",
            )
        self.mode = mode

    def components(self, moments: Moments, width: int) -> Tensor:
        # Interpolation is linear: its matrix has the interpolated unit vectors as rows.
        unit = torch.eye(len(moments.mean), dtype=torch.float64)[:, None]
        return torch.nn.functional.interpolate(unit, size=width, mode=self.mode)[:, 0]


class Identity(Aligner):
    """The centred teacher feature, unchanged; for Ds = Dt only."""

    def components(self, moments: Moments, width: int) -> Tensor:
        dt = len(moments.mean)
        check_widths(width, dt, self.policy, must_be_equal=True)
        return torch.eye(dt, dtype=torch.float64)


def svd_basis(moments: Moments, width: int) -> tuple[Basis, Tensor]:
    """The basis of `Svd` and all eigenvalues [Dt], largest first."""
    svd = Svd()
    basis = svd.fit(moments, width)
    assert svd.eigenvalues is not None
    return basis, svd.eigenvalues


def spectrum(moments: Moments) -> tuple[Tensor, Tensor]:
    """Eigenvalues [Dt] of the covariance, largest first, and eigenvectors [Dt, Dt] as columns.

    The signs are chosen so that the entry of largest magnitude of every eigenvector is positive.
    """
    values, vectors = torch.linalg.eigh(moments.covariance)
    v = vectors.flip(1)
    return values.flip(0).clamp(min=0), v * v.gather(0, v.abs().argmax(0, keepdim=True)).sign()


def check_enough_rows(moments: Moments, width: int) -> None:
    """Raises KdepError unless there are more features than directions, and the features vary."""
    if moments.n <= width:
        raise KdepError(
            f"{moments.n} features are too few to estimate {width} directions",
            expected=f"more than {width} features",
            fix="use more images (a larger data fraction, if it is below 1), more views per "
            "image (budget.views), or a narrower student",
        )
    if not float(moments.std.max()) > 0:
        raise KdepError(
            "the teacher's feature is the same for every image",
            fix="check the teacher's weights and `tap`",
        )


def checked_rank(values: Tensor, width: int, can_pad: bool = False) -> int:
    """The numerical rank of the covariance.

    Args:
        values: [Dt] eigenvalues, largest first.
        width: required rank.
        can_pad: whether a policy of `align` would permit directions without variance; the error
            then suggests it.

    Raises:
        KdepError: the rank is below `width`.
    """
    rank = int((values > values[0] * RANK_TOLERANCE).sum())
    if rank < width:
        fix = (
            "set the teacher's `tap` to its last activation (a last linear layer limits the rank), "
            "or choose a narrower student"
        )
        if can_pad:
            fix = (
                "the output of a LayerNorm has one direction without variance: set `policy` in the "
                f"method's `align` to one of {', '.join(POLICIES)}, which permit it"
            )
        raise KdepError(
            f"the teacher's features have rank {rank}, but the student has {width} channels",
            fix=fix,
        )
    return rank


def explained_variance_ratio(moments: Moments, basis: Basis) -> float:
    """Fraction of the teacher's variance in the span of V: tr(Q' C Q) / tr(C).

    C is the covariance of the features and Q an orthonormal basis of the span. For `Svd` it is the
    sum of the first Ds eigenvalues divided by the sum of all.
    """
    q = basis.components.double()
    if not torch.allclose(q.T @ q, torch.eye(q.shape[1], dtype=q.dtype), atol=1e-5):
        u, s, _ = torch.linalg.svd(q, full_matrices=False)
        q = u[:, s > s[0] * 1e-6]
    return float(((moments.covariance @ q) * q).sum() / moments.covariance.trace())


def widening(policy: str, dt: int, width: int, seed: int) -> Tensor:
    """The matrix [Dt, width], float64, of a policy for width > Dt; see `policies.POLICIES`.

    The rows are orthonormal for 'zero_pad' and 'random_rotation', which preserve all distances.
    """
    if policy == "repeat":
        return _columns(dt, torch.arange(width) % dt)
    padded = torch.eye(dt, width, dtype=torch.float64)
    return padded if policy == "zero_pad" else padded @ orthogonal(width, seed)


def orthogonal(n: int, seed: int) -> Tensor:
    """A seeded orthogonal matrix [n, n], float64, uniform (Haar).

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q: Mezzadri 2007, "How to
    generate random matrices from the classical compact groups".
    """
    gauss = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gauss)
    return q * r.diagonal().sign()


def _columns(dt: int, index: Tensor) -> Tensor:
    """[Dt, len(index)] with a one at (index[j], j)."""
    return torch.eye(dt, dtype=torch.float64)[:, index]

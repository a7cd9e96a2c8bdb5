"""PHI-S: PCA-Hadamard isotropic standardisation, an alternative to power temperature scaling.

Source: Ranzinger et al. 2024, "PHI-S: Distribution Balancing for Label-Free Multi-Teacher
Distillation", arXiv 2410.01680; formula as in the authors' NVlabs/RADIO
`examples/common/phi_s.py` and `hadamard.py`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import hadamard as sylvester
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.features.transform import Transform, principal_axes


class PhiS(Transform):
    """a -> Q U' a / phi: a rotation and a division that give every channel unit variance.

    U L U' is the covariance of a, phi^2 = mean(L), and Q an orthogonal matrix for which Q L Q' has
    a constant diagonal: a Hadamard matrix divided by sqrt(D) if `hadamard` can construct one of
    order D, else the result of `balancing`. (For other orders the authors' code uses a random
    orthogonal matrix, for which the channel variances are only about equal.)

    Apart from the division by phi, the transform is a rotation. Unlike whitening, it is invertible
    for every rank and does not change the relative sizes of errors: the squared error of a student
    is the squared error for the SVD target, divided by phi^2. Only its distribution over the
    channels differs.

    Args:
        covariance: [D, D] of the aligned feature over the alignment samples.

    Raises:
        KdepError: the aligned feature has no variance.
    """

    required_args = ("covariance",)
    matrix: Tensor

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        values, u = principal_axes(covariance)
        phi = float(values.mean().sqrt())
        if not phi > 0:
            raise KdepError(
                "the aligned feature is the same for every image",
                fix="check the teacher's weights and the method's `align`",
            )
        self.register_buffer("matrix", (u @ rotation(values).T / phi).float())

    def forward(self, a: Tensor) -> Tensor:
        return a @ self.matrix


def rotation(variances: Tensor) -> Tensor:
    """Orthogonal Q [D, D], float64, for which Q diag(variances) Q' has a constant diagonal."""
    h = hadamard(len(variances))
    if h is None:
        return balancing(variances)
    return torch.from_numpy(h).double() / math.sqrt(len(h))


def hadamard(order: int) -> np.ndarray | None:
    """A Hadamard matrix [order, order] (entries +-1, orthogonal rows); None if not constructible.

    Sylvester (1867) for powers of two, and their Kronecker products with Paley's (1933)
    constructions I and II for primes. All usual widths have one (192, 320, 384, 768, 1280, 1792);
    no Hadamard matrix exists for an order above 2 that is not a multiple of 4.
    """
    power = order & -order  # the largest power of two that divides the order
    while power >= 1:
        paley = _paley(order // power)
        if paley is not None:
            return np.kron(sylvester(power), paley)
        power //= 2
    return None


def _paley(order: int) -> np.ndarray | None:
    """Paley's Hadamard matrix: order 1, q + 1 (prime q = 3 mod 4) or 2 (q + 1) (q = 1 mod 4)."""
    if order == 1:
        return np.ones((1, 1), int)
    if order % 4:
        return None
    if _is_prime(order - 1):  # = 3 mod 4, as the order is a multiple of 4
        s = _bordered(order - 1)
        s[1:, 0] = -1
        return np.eye(order, dtype=int) + s
    q = order // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        sign_block, zero_block = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(_bordered(q), sign_block) + np.kron(np.eye(q + 1, dtype=int), zero_block)
    return None


def _bordered(q: int) -> np.ndarray:
    """[q+1, q+1]: the quadratic characters of i - j mod q, bordered by ones, zero diagonal."""
    character = np.full(q, -1)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    i = np.arange(q)
    out = np.ones((q + 1, q + 1), int)
    out[0, 0] = 0
    out[1:, 1:] = character[(i[:, None] - i[None]) % q]
    return out


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))


def balancing(variances: Tensor) -> Tensor:
    """Orthogonal Q [D, D] for which Q diag(variances) Q' has a constant diagonal, for any D.

    Uses at most D - 1 plane rotations, each of which sets one diagonal entry to the mean: Chan and
    Li 1983, "Diagonal elements and eigenvalues of a real symmetric matrix" (a constructive proof of
    the Schur-Horn theorem).
    """
    v = variances.double().clone()
    mean = float(v.mean())
    q = torch.eye(len(v), dtype=torch.float64)
    above = [i for i in range(len(v)) if float(v[i]) > mean]
    below = [i for i in range(len(v)) if float(v[i]) < mean]
    while above and below:
        i, j = above[-1], below[-1]
        high, low = float(v[i]), float(v[j])
        # Rotating channels i and j by an angle t mixes their variances: with
        # c^2 high + s^2 low = mean, i gets the mean and j gets high + low - mean.
        s = math.sqrt((high - mean) / (high - low))
        c = math.sqrt(1 - s * s)
        q[[i, j]] = torch.stack([c * q[i] + s * q[j], c * q[j] - s * q[i]])
        v[i], v[j] = mean, high + low - mean
        above.pop()
        if float(v[j]) >= mean:
            below.pop()
        if float(v[j]) > mean:
            above.append(j)
    return q

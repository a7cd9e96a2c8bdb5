"""PHI-S: PCA-Hadamard isotropic standardisation, the rival of power temperature scaling.

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
    """a -> Q U' a / phi: every channel has unit variance, by a rotation and one number.

    U L U' is the covariance of a, phi^2 = mean(L), and Q an orthogonal matrix for which Q L Q' has
    a constant diagonal: a Hadamard matrix over sqrt(Ds) where one of that order is built here,
    else `balancing`. (For the orders without one the authors' code draws a random orthogonal
    matrix, whose channels come out nearly, not exactly, alike.)

    Up to phi this is a rotation, so it is invertible for every rank, and keeps the relative sizes
    of the errors, which whitening does not. The squared error of a student is that of the plain
    SVD target over phi^2: only which channel carries what is different.

    Args:
        covariance: [Ds, Ds] of the aligned feature over the fitting rows.
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
    """A Hadamard matrix (entries +-1, rows orthogonal), or None where these constructions miss.

    Sylvester (1867) for the powers of two, Kronecker products of one with Paley's (1933)
    constructions I and II for primes. All usual widths have one (192, 320, 384, 768, 1280, 1792);
    an order above 2 that is no multiple of 4 has none at all.
    """
    power = order & -order
    while power >= 1:
        paley = _paley(order // power)
        if paley is not None:
            return np.kron(sylvester(power), paley)
        power //= 2
    return None


def _paley(order: int) -> np.ndarray | None:
    """Order 1; q + 1 for a prime q = 3 mod 4; 2 (q + 1) for a prime q = 1 mod 4."""
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
        one, other = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(_bordered(q), one) + np.kron(np.eye(q + 1, dtype=int), other)
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
    """Orthogonal Q for which Q diag(variances) Q' has a constant diagonal, for every order.

    D - 1 plane rotations, each of which brings one channel to the mean: Chan and Li 1983,
    "Diagonal elements and eigenvalues of a real symmetric matrix" (a constructive Schur-Horn).
    """
    v = variances.double().clone()
    mean = float(v.mean())
    q = torch.eye(len(v), dtype=torch.float64)
    above = [i for i in range(len(v)) if float(v[i]) > mean]
    below = [i for i in range(len(v)) if float(v[i]) < mean]
    while above and below:
        i, j = above[-1], below[-1]
        high, low = float(v[i]), float(v[j])
        # Turning channels i and j by an angle t mixes their variances: c^2 high + s^2 low = mean
        # makes i the mean and leaves high + low - mean to j.
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

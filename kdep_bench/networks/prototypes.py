"""Prototypes of local features: assignment by cosine, reconstruction and initial values.

K is the number of prototypes. A local feature is the vector [C] of a map at one position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError

# Unit vectors with a larger cosine are equal up to the rounding of float32.
SAME_DIRECTION = 1 - 1e-6


def assign(x_BCHW: Tensor, prototypes_KC: Tensor, tau: float) -> Tensor:
    """[B, K, H, W]: softmax over the prototypes of cos(x, p_k) / tau, at every position.

    A position or a prototype of zeros has the cosine 0.
    """
    x, p = F.normalize(x_BCHW, dim=1), F.normalize(prototypes_KC, dim=1)
    return (torch.einsum("bchw,kc->bkhw", x, p) / tau).softmax(1)


def reconstruct(x_BCHW: Tensor, prototypes_KC: Tensor, tau: float) -> Tensor:
    """[B, C, H, W]: the mean of the prototypes at every position, weighted by `assign`."""
    return torch.einsum("bkhw,kc->bchw", assign(x_BCHW, prototypes_KC, tau), prototypes_KC)


@torch.no_grad()
def spread_out(x_BCHW: Tensor, count: int) -> Tensor:
    """[count, C]: local features of the maps, of length 1, in different directions.

    A local feature is the vector of channels at one position. The first is the one least similar to
    their mean. Each following one is the one whose largest cosine with those chosen is smallest
    (farthest-first traversal). Local features of zeros, which maps after a ReLU can have, are left
    out. Deterministic.

    Raises:
        KdepError: there are fewer local features, or fewer different directions, than `count`.
    """
    x_NC = F.normalize(x_BCHW, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    x_NC = x_NC[x_NC.any(1)]
    if len(x_NC) < count:
        raise _too_few(count, len(x_NC), "positions that are not zero")
    # Largest cosine with the chosen ones; for the first, the cosine with the mean.
    similarity = x_NC @ F.normalize(x_NC.mean(0), dim=0)
    chosen: list[Tensor] = []
    for k in range(count):
        cosine, position = similarity.min(0)
        if k and float(cosine) > SAME_DIRECTION:
            raise _too_few(count, k, "different directions")
        chosen.append(x_NC[position])
        to_last = x_NC @ chosen[-1]
        similarity = torch.maximum(similarity, to_last) if k else to_last
    return torch.stack(chosen)


def _too_few(count: int, available: int, unit: str) -> KdepError:
    return KdepError(
        f"{count} prototypes are initialised from one batch, whose maps have {available} {unit}",
        expected=f"at most {available} prototypes",
        fix="set fewer `prototypes` in the method's objective, or a larger batch",
    )

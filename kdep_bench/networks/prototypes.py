"""Prototypes of local features: assignment by cosine, reconstruction and initial values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError


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
    """[count, C]: positions of the maps, of length 1, in different directions.

    The first is the one least similar to the mean of all; each other one has the smallest largest
    cosine with those before it (farthest-first traversal). Deterministic.

    Raises:
        KdepError: there are fewer positions than `count`.
    """
    x_NC = F.normalize(x_BCHW, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    if len(x_NC) < count:
        raise KdepError(
            f"{count} prototypes are initialised from one batch, whose maps have {len(x_NC)} "
            "positions in all",
            expected=f"at most {len(x_NC)} prototypes",
            fix="set fewer `prototypes` in the method's objective, or a larger batch",
        )
    similarity = x_NC @ F.normalize(x_NC.mean(0), dim=0)
    chosen: list[Tensor] = []
    for k in range(count):
        chosen.append(x_NC.index_select(0, similarity.argmin().view(1))[0])
        to_last = x_NC @ chosen[-1]
        similarity = torch.maximum(similarity, to_last) if k else to_last
    return torch.stack(chosen)

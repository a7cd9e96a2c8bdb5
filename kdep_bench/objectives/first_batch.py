"""A scale that the first batch sets and the whole run keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

from kdep_bench.errors import KdepError


class FirstBatch(nn.Module):
    """Remembers `count` means of the first batch, so that a weight can be relative to them.

    They are buffers: a resumed run goes on with the same ones. Under several processes they are
    those of the first global batch, equal on every rank.
    """

    energy: Tensor

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.register_buffer("energy", torch.zeros(count))
        self._known: set[int] = set()  # so that a GPU is asked once

    def forward(self, mean: Callable[[], Tensor], what: str, k: int = 0) -> Tensor:
        """The k-th scale, a scalar; `mean` gives a batch's. KdepError where that is not above 0."""
        if k not in self._known and not float(self.energy[k]) > 0:
            found = mean().detach().float()
            if distributed.is_initialized():
                distributed.all_reduce(found)
                found = found / distributed.get_world_size()
            if not float(found) > 0:
                raise KdepError(
                    f"{what} is zero in the whole first batch",
                    expected="one that says something",
                    fix="choose another teacher or another of its outputs",
                )
            self.energy[k] = found
        self._known.add(k)
        return self.energy[k]

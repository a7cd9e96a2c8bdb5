"""A scale that the first batch sets and the whole run keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from kdep_bench.errors import KdepError


class FirstBatch(nn.Module):
    """Remembers `count` means over the first batch, so that a weight can be relative to them.

    What is averaged is the caller's: a mean square, or a mean distance to zero. `means` [count] is
    a buffer, 0 where not yet known: a resumed run continues with the same values. Under several
    processes they are those of the first global batch, equal on every rank.
    """

    means: Tensor

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(count))
        self._known: set[int] = set()  # avoids reading `means` from a GPU in every step

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        old = f"{prefix}energy"  # its name in resume files of earlier versions
        if old in state_dict:
            state_dict[f"{prefix}means"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, mean: Callable[[], Tensor], what: str, k: int = 0) -> Tensor:
        """The k-th scale, a scalar; `mean` gives a batch's. KdepError where that is not above 0."""
        if k not in self._known and not float(self.means[k]) > 0:
            found = mean().detach().float()
            if distributed.is_initialized():
                distributed.all_reduce(found)
                found = found / distributed.get_world_size()
            if not float(found) > 0:
                raise KdepError(
                    f"{what} is zero for the whole first batch, so the loss cannot be normalised",
                    fix="choose another teacher or another of its outputs",
                )
            self.means[k] = found
        self._known.add(k)
        return self.means[k]

"""Constants that are measured on the first batch and used for the whole run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from kdep_bench.errors import KdepError


class FirstBatch(nn.Module):
    """Stores `count` means over the first batch, by which an objective normalises its loss.

    The caller chooses what is averaged, for example the mean square of a target. With several
    processes, the means are over the global batch and equal on every rank.

    Attributes:
        means: [count] buffer, 0 for values that are not measured yet. It is stored in checkpoints,
            so that a resumed run uses the same values.
    """

    means: Tensor

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(count))
        self._measured: set[int] = set()  # avoids reading `means` from a GPU in every step

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Also loads checkpoints of earlier versions."""
        old_name = f"{prefix}energy"  # the name of `means` there
        if old_name in state_dict:
            state_dict[f"{prefix}means"] = state_dict.pop(old_name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, mean: Callable[[], Tensor], quantity: str, k: int = 0) -> Tensor:
        """The k-th mean, a scalar tensor.

        Args:
            mean: returns the mean of this batch; called in the first batch only.
            quantity: name of the averaged quantity, for the error.
            k: number of the mean, 0 to count - 1.

        Raises:
            KdepError: the mean of the first batch is not positive.
        """
        if k not in self._measured and not float(self.means[k]) > 0:
            batch_mean = mean().detach().float()
            if distributed.is_initialized():
                distributed.all_reduce(batch_mean)
                batch_mean = batch_mean / distributed.get_world_size()
            if not float(batch_mean) > 0:
                raise KdepError(
                    f"{quantity} is zero for the whole first batch, so the loss cannot be "
                    "normalised",
                    fix="choose another teacher or another of its outputs",
                )
            self.means[k] = batch_mean
        self._measured.add(k)
        return self.means[k]

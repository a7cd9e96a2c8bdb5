"""A second pass of a task's neck and heads, from changed features of the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.networks.running_statistics import unchanged_running_statistics
from kdep_bench.transfer.method import TransferContext


class SecondPass:
    """Computes the task's loss again, from features that a transfer method changed.

    The second pass draws the random numbers of the first (dropout, sampled boxes), so unchanged
    features have the same loss. The next step draws the same random numbers as without a second
    pass. BatchNorm layers normalise by the statistics of the second pass, but do not add them
    to their running statistics, because the network is scored on unchanged features.

    It is not a module, so the task's model is not registered as a part of the transfer method.

    Args:
        model: the task's model of mmpretrain, mmdet or mmseg.

    Attributes:
        is_classifier: whether the head reads pooled features, not maps.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._task_class = model, type(model)
        self.is_classifier = hasattr(model, "head")
        self._pooled: Tensor | None = None
        self._random_state: list[Tensor] = []
        self._is_second = False
        if self.is_classifier:
            self._handle = model.head.register_forward_pre_hook(self._before_head)
        else:
            self._handle = model.backbone.register_forward_hook(self._after_backbone)

    def _before_head(self, _module: nn.Module, args: Any) -> None:
        if not self._is_second:
            pooled: Tensor = args[0][-1]
            self._pooled, self._random_state = pooled, random_state(pooled.device)

    def _after_backbone(self, _module: nn.Module, _args: Any, maps: Sequence[Tensor]) -> None:
        self._random_state = random_state(maps[-1].device)

    def pooled(self) -> Tensor:
        """[B, D]: the input of a classifier's head in the first pass, which is then released."""
        pooled, self._pooled = self._pooled, None
        assert pooled is not None
        return pooled

    def loss(self, features: Sequence[Tensor], ctx: TransferContext) -> Tensor:
        """The sum of the task's losses for these features: a scalar.

        Args:
            features: for a classifier, the input of its head; otherwise the maps of the backbone,
                in its order.
            ctx: the batch.
        """
        model, self._is_second = self._model, True
        with unchanged_running_statistics(model), same_random_numbers(self._random_state, features):
            if not self.is_classifier and model.with_neck:
                features = model.neck(tuple(features))
            model.extract_feat = lambda *_args, **_kwargs: features
            try:
                losses = self._task_class.loss(model, ctx.inputs, ctx.samples)
            finally:
                del model.extract_feat
                self._is_second = False
        return self.total(losses)

    def total(self, losses: Mapping[str, Any]) -> Tensor:
        """The sum of the task's losses, as the training adds them: a scalar."""
        return self._model.parse_losses(dict(losses))[0]

    def remove(self) -> None:
        """Removes the hook from the model."""
        self._handle.remove()


def random_state(device: torch.device) -> list[Tensor]:
    """States of torch's random number generators: of the CPU, and of a CUDA device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def same_random_numbers(states: Sequence[Tensor], features: Sequence[Tensor]) -> Iterator[None]:
    """Sets the random states `states`, as returned by `random_state`; restores the others at exit.

    `features` are tensors on the device of the states.
    """
    device = features[-1].device
    with torch.random.fork_rng(devices=[device] if len(states) > 1 else []):
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], device)
        yield

"""Players: parts of an objective that have a separate optimiser, such as an adversary."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.optim import OPTIMIZERS
from torch import Tensor, distributed, nn

from kdep_bench.errors import KdepError, unknown_name


@dataclass(frozen=True)
class Player:
    """A part of an objective and its optimiser.

    Attributes:
        module: a submodule of the objective; the optimiser updates all its parameters.
        optimizer: config {type, lr, ...}, as in a suite's budget.
        scheduled: whether the optimiser's learning rate is multiplied by `Players.factor`.
        max_norm: largest norm of the gradient of all parameters together; a longer gradient is
            scaled down to this norm. None: no limit.
    """

    module: nn.Module
    optimizer: Mapping[str, Any]
    scheduled: bool = True
    max_norm: float | None = None


class Players:
    """The players of a run and their optimisers.

    The parameters of players require gradients only inside `training()`, so that neither the
    student's loss nor its optimiser changes them.

    Attributes:
        factor: the student's learning rate divided by its initial one; set before every step.

    Raises:
        KdepError: a player without parameters.
    """

    def __init__(self, players: Mapping[str, Player]) -> None:
        self.factor, self._prefix = 1.0, ""
        self._players = dict(players)
        self._optimizers: dict[str, Any] = {}
        for name, player in self._players.items():
            parameters = list(player.module.parameters())
            if not parameters:
                raise KdepError(
                    f"the player {name!r} of an objective has no parameters",
                    fix="correct `players()` of the objective's class",
                )
            config = {**player.optimizer, "params": parameters}
            self._optimizers[name] = OPTIMIZERS.build(config)
            player.module.requires_grad_(False)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Context in which the players' parameters require gradients."""
        for player in self._players.values():
            player.module.requires_grad_(True)
        try:
            yield
        finally:
            for player in self._players.values():
                player.module.requires_grad_(False)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one player; KdepError for an unknown name."""
        name = self._prefix + name
        if name not in self._players:
            raise unknown_name("player", name, self._players, place="the objective")
        return list(self._players[name].module.parameters())

    def minimise(self, name: str, loss: Tensor) -> None:
        """One optimiser step of a player on a scalar loss; no other parameter gets a gradient."""
        self.apply(name, torch.autograd.grad(loss, self.parameters(name), allow_unused=True))

    @torch.no_grad()
    def apply(self, name: str, gradients: Sequence[Tensor | None]) -> None:
        """One optimiser step of a player with the given gradients, one per parameter.

        With several processes, the gradients are averaged over them, and only then limited to the
        player's `max_norm`, so that the step does not depend on the number of processes.
        """
        parameters, optimizer = self.parameters(name), self._optimizers[self._prefix + name]
        player = self._players[self._prefix + name]
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient if gradient is None else gradient.detach().clone()
            if distributed.is_initialized():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                distributed.all_reduce(p.grad)
                p.grad /= distributed.get_world_size()
        if player.max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, player.max_norm)
        base_lrs = [group["lr"] for group in optimizer.param_groups]
        if player.scheduled:
            for group in optimizer.param_groups:
                group["lr"] *= self.factor
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)

    def part(self, prefix: str) -> Players:
        """The players of one part of a sum: "<prefix>.<name>" is then called "<name>"."""
        part = copy.copy(self)
        part._prefix = f"{self._prefix}{prefix}."
        return part

    def state_dict(self) -> dict[str, Any]:
        """States of the optimisers by player; the parameters are in the model's state dict."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])

"""Auxiliary modules: parts of an objective that have a separate optimiser, such as an adversary."""

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
class AuxiliaryModule:
    """A part of an objective and its optimiser.

    Attributes:
        module: a submodule of the objective; the optimiser updates all its parameters.
        optimizer: config {type, lr, ...}, as in a suite's budget.
        scheduled: whether the optimiser's learning rate is multiplied by `AuxiliaryModules.factor`.
        max_norm: largest norm of the gradient of all parameters together; a longer gradient is
            scaled down to this norm. None: no limit.
    """

    module: nn.Module
    optimizer: Mapping[str, Any]
    scheduled: bool = True
    max_norm: float | None = None


class AuxiliaryModules:
    """The auxiliary modules of a run and their optimisers.

    Their parameters require gradients only inside `training()`, so that neither the student's loss
    nor its optimiser changes them.

    Attributes:
        factor: the student's learning rate divided by its initial one; set before every step.

    Raises:
        KdepError: an auxiliary module without parameters.
    """

    def __init__(self, modules: Mapping[str, AuxiliaryModule]) -> None:
        self.factor, self._prefix = 1.0, ""
        self._modules = dict(modules)
        self._optimizers: dict[str, Any] = {}
        for name, auxiliary in self._modules.items():
            parameters = list(auxiliary.module.parameters())
            if not parameters:
                raise KdepError(
                    f"the auxiliary module {name!r} of an objective has no parameters",
                    fix="correct `auxiliary_modules()` of the objective's class",
                )
            config = {**auxiliary.optimizer, "params": parameters}
            self._optimizers[name] = OPTIMIZERS.build(config)
            auxiliary.module.requires_grad_(False)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Context in which the auxiliary modules' parameters require gradients."""
        for auxiliary in self._modules.values():
            auxiliary.module.requires_grad_(True)
        try:
            yield
        finally:
            for auxiliary in self._modules.values():
                auxiliary.module.requires_grad_(False)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one auxiliary module; KdepError for an unknown name."""
        name = self._prefix + name
        if name not in self._modules:
            raise unknown_name("auxiliary module", name, self._modules, place="the objective")
        return list(self._modules[name].module.parameters())

    def minimise(self, name: str, loss: Tensor) -> None:
        """One optimiser step of a module on a scalar loss; no other parameter gets a gradient."""
        self.apply(name, torch.autograd.grad(loss, self.parameters(name), allow_unused=True))

    @torch.no_grad()
    def apply(self, name: str, gradients: Sequence[Tensor | None]) -> None:
        """One optimiser step of a module with the given gradients, one per parameter.

        With several processes, the gradients are averaged over them, and only then limited to the
        module's `max_norm`, so that the step does not depend on the number of processes.
        """
        parameters, optimizer = self.parameters(name), self._optimizers[self._prefix + name]
        auxiliary = self._modules[self._prefix + name]
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient if gradient is None else gradient.detach().clone()
            if distributed.is_initialized():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                distributed.all_reduce(p.grad)
                p.grad /= distributed.get_world_size()
        if auxiliary.max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, auxiliary.max_norm)
        base_lrs = [group["lr"] for group in optimizer.param_groups]
        if auxiliary.scheduled:
            for group in optimizer.param_groups:
                group["lr"] *= self.factor
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)

    def part(self, prefix: str) -> AuxiliaryModules:
        """The auxiliary modules of one part of a sum: "<prefix>.<name>" is then called "<name>"."""
        part = copy.copy(self)
        part._prefix = f"{self._prefix}{prefix}."
        return part

    def state_dict(self) -> dict[str, Any]:
        """States of the optimisers by module; the parameters are in the model's state dict."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])

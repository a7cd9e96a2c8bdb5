"""mmengine hooks of the pre-training run. Whatever they keep is in the resume files."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper


def unwrapped(runner: Any) -> Any:
    """The model of a runner, out of its DDP wrapper if there is one."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


class Clock(Hook):
    """Tells the model which optimiser step it is in, and its objective when one is done.

    The step is the runner's own iteration, so a resumed run goes on counting where it was cut.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        model = unwrapped(runner)
        model.step, model.steps = runner.iter, runner.max_iters

    @torch.no_grad()
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        unwrapped(runner).objective.after_step()


class TermShares(Hook):
    """The mean over all steps of |term| / sum of |terms|, by term.

    Magnitudes, because a term may be negative; a step whose terms are all zero counts for none.
    """

    priority = "BELOW_NORMAL"
    _KEY = "kdep_term_shares"

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    @property
    def shares(self) -> dict[str, float]:
        """{term: share}; empty before the first step."""
        return {k: v / self._steps for k, v in self._sums.items()} if self._steps else {}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        terms = {
            k.removeprefix("loss_"): abs(v.item())
            for k, v in (outputs or {}).items()
            if k.startswith("loss_")
        }
        total = sum(terms.values())
        if total > 0:
            self._steps += 1
            for name, value in terms.items():
                self._sums[name] = self._sums.get(name, 0.0) + value / total

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self._KEY] = {"sums": dict(self._sums), "steps": self._steps}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self._KEY in checkpoint:
            self._sums = dict(checkpoint[self._KEY]["sums"])
            self._steps = checkpoint[self._KEY]["steps"]

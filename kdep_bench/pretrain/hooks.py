"""mmengine hooks of the pre-training run. Whatever they keep is in the resume files."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from kdep_bench.errors import KdepError


def unwrapped(runner: Any) -> Any:
    """The model of a runner, out of its DDP wrapper if there is one."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


class Clock(Hook):
    """Sets the model's step number, and calls the objective's `after_step` after each step.

    The number is the runner's iteration, so a resumed run continues at the step of interruption.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        model = unwrapped(runner)
        model.step, model.steps = runner.iter, runner.max_iters
        if model.players is not None:
            group = runner.optim_wrapper.param_groups[0]
            model.players.factor = group["lr"] / group.get("initial_lr", group["lr"])

    @torch.no_grad()
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        unwrapped(runner).objective.after_step()


class EveryWeightTaught(Hook):
    """Refuses an objective under which some weights of the student get no gradient.

    These would keep their random initialisation and be exported as pre-trained: for example, hints
    at a middle level train no layer after it. A resumed run is checked again.
    """

    priority = "NORMAL"

    def __init__(self) -> None:
        self._reached: dict[str, bool] = {}
        self._handles: list[Any] = []

    def before_train(self, runner: Any) -> None:
        for name, p in unwrapped(runner).backbone.named_parameters():
            if p.requires_grad:
                self._reached[name] = False
                self._handles.append(p.register_hook(partial(self._note, name)))

    def _note(self, name: str, grad: torch.Tensor) -> None:
        self._reached[name] = True

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        never = [name for name, reached in self._reached.items() if not reached]
        if never:
            raise KdepError(
                f"{len(never)} of {len(self._reached)} student parameters get no gradient from "
                f"the objective (the first is {never[0]}) and would be exported untrained",
                fix="add the last level to the objective's `levels`, or a loss term on the pooled "
                "feature",
            )


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
        """Mean fraction of the loss magnitude per term; empty before the first step."""
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


class PlayersState(Hook):
    """Keeps the states of the players' optimisers in the resume files."""

    priority = "NORMAL"
    _KEY = "kdep_players"

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        players = unwrapped(runner).players
        if players is not None:
            checkpoint[self._KEY] = players.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        players = unwrapped(runner).players
        if players is not None:
            players.load_state_dict(checkpoint[self._KEY])


class RandomState(Hook):
    """Keeps the state of torch's random generators in the resume files.

    A student with dropout or random depth (Swin, ConvNeXt) draws in every step; without the state,
    a resumed run would draw other numbers than an uninterrupted one. The first process writes; all
    processes have one seed and draw equally often, so its state is that of every one.
    """

    _KEY = "kdep_random_state"

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        checkpoint[self._KEY] = state

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(self._KEY, {})
        if "cpu" in state:
            torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())


class WeightAverage(Hook):
    """Exponential moving average of the student: a <- decay * a + (1 - decay) * w, every step.

    All floating tensors of the backbone, BatchNorm statistics included, in float32; counters are
    copied. Starts as a copy of the initial weights. mmengine's EMAHook copies the whole model,
    with its teacher and the hooks of its tap; this keeps the student alone.
    """

    priority = "NORMAL"
    _KEY = "kdep_weight_average"

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def before_train(self, runner: Any) -> None:
        state = unwrapped(runner).backbone.state_dict()
        if not self.average:
            self.average = {k: v.detach().clone() for k, v in state.items()}
        self.average = {k: v.to(state[k].device) for k, v in self.average.items()}

    @torch.no_grad()
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for name, value in unwrapped(runner).backbone.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - self.decay)
            else:
                self.average[name].copy_(value)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self._KEY] = {k: v.detach().cpu() for k, v in self.average.items()}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self._KEY in checkpoint:
            self.average = {k: v.clone() for k, v in checkpoint[self._KEY].items()}

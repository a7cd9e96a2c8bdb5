"""mmengine hooks of the pre-training run. Their state is stored in the checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from kdep_bench.errors import KdepError


def unwrapped(runner: Any) -> Any:
    """The model of a runner without its DDP wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


class StepCounterHook(Hook):
    """Sets the model's step number, and calls the objective's `after_step` after each step.

    It also sets the learning-rate factor of the auxiliary modules, if the objective has any.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        model = unwrapped(runner)
        model.step, model.steps = runner.iter, runner.max_iters
        if model.auxiliary is not None:
            group = runner.optim_wrapper.param_groups[0]
            model.auxiliary.factor = group["lr"] / group.get("initial_lr", group["lr"])

    @torch.no_grad()
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        unwrapped(runner).objective.after_step()


class GradientCoverageHook(Hook):
    """Raises KdepError after the first step if a parameter of the student got no gradient.

    Such a parameter would keep its random initialisation and be exported as pre-trained. For
    example, hints at a middle level do not train the layers after it. A resumed run is checked
    again.
    """

    priority = "NORMAL"

    def __init__(self) -> None:
        self._has_gradient: dict[str, bool] = {}
        self._handles: list[Any] = []

    def before_train(self, runner: Any) -> None:
        for name, p in unwrapped(runner).backbone.named_parameters():
            if p.requires_grad:
                self._has_gradient[name] = False
                self._handles.append(p.register_hook(partial(self._record_gradient, name)))

    def _record_gradient(self, name: str, grad: torch.Tensor) -> None:
        self._has_gradient[name] = True

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        untrained = [name for name, has_gradient in self._has_gradient.items() if not has_gradient]
        if untrained:
            raise KdepError(
                f"{len(untrained)} of {len(self._has_gradient)} student parameters get no gradient "
                f"from the objective (the first is {untrained[0]}) and would be exported untrained",
                fix="add the last level to the objective's `levels`, or a loss term on the pooled "
                "feature",
            )


class TermShares(Hook):
    """Measures which fraction of the loss each term contributes.

    The fraction is |term| / sum of |terms|, averaged over all steps. Magnitudes are used because a
    term may be negative. Steps in which all terms are 0 are omitted.
    """

    priority = "BELOW_NORMAL"
    _KEY = "kdep_term_shares"

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    @property
    def fractions(self) -> dict[str, float]:
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


class AuxiliaryState(Hook):
    """Stores the optimisers of the objective's auxiliary modules in checkpoints."""

    priority = "NORMAL"
    _KEY = "kdep_players"

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        auxiliary = unwrapped(runner).auxiliary
        if auxiliary is not None:
            checkpoint[self._KEY] = auxiliary.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        auxiliary = unwrapped(runner).auxiliary
        if auxiliary is not None:
            auxiliary.load_state_dict(checkpoint[self._KEY])


class RandomState(Hook):
    """Stores the state of torch's random generators in the checkpoints.

    A student with dropout or stochastic depth (Swin, ConvNeXt) uses random numbers in every step.
    Without the state, a resumed run would use other numbers than an uninterrupted run. The state of
    the first process is used for all processes: they have the same seed, and draw equally many
    numbers.
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
    """Exponential moving average of the student: a <- decay * a + (1 - decay) * w in every step.

    All floating-point tensors of the backbone are averaged, BatchNorm statistics included; other
    tensors (counters) are copied. The average starts as a copy of the initial weights. mmengine's
    EMAHook is not used, because it would also copy the live teacher and the hooks of the tap.

    Attributes:
        average: state dict of the averaged backbone; empty before training.
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

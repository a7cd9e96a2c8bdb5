"""Mean teacher: cross-entropy plus consistency with a moving average of the student (2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import BelowOne
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.schedules.build import as_schedule

# The default of w: from 0 to 10 in the first quarter of the run.
RAMP: Mapping[str, Any] = {
    "type": "kdep_bench.schedules.ramp.Ramp",
    "start": 0.0,
    "end": 10.0,
    "over": 0.25,
}


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network, in place.

    For parameters and floating-point buffers; other buffers (counters) are copied.
    """
    update_state(average, network.state_dict(), decay)


def update_state(average: nn.Module, tensors: Mapping[str, Tensor], decay: float) -> None:
    """As `update_average`, for the tensors of a network by name."""
    state = average.state_dict()
    for name, value in tensors.items():
        if value.is_floating_point():
            state[name].lerp_(value.detach(), 1 - decay)
        else:
            state[name].copy_(value)


class MeanTeacher(Objective):
    """CE(y, p_s(v)) + w(t) mean over classes of (p_s(v) - p_ema(v'))^2, per view v of an image.

    v' is the next view of the same image. p_ema is the output of an exponential moving average of
    student and head, BatchNorm statistics included, in eval mode.

    Source: Tarvainen and Valpola 2017; CuriousAI/mean-teacher `pytorch/mean_teacher/losses.py`
    (softmax_mse_loss). Differences: every image has a label here, so the second term is only a
    regulariser; the average is run in eval mode and has the same decay from the start (in the
    source it begins as a running mean); the student is exported, not its average; and decay, weight
    and ramp were chosen in this project.

    Args:
        decay: decay per step of the moving average.
        weight: w, a number or the config of a schedule.
        width, classes, views, epochs: set by the pre-training stage.
    """

    needs = frozenset({"labels", "views"})
    stage_arguments = frozenset({"width", "classes", "views", "epochs"})
    couples_samples = True
    forwards = 1
    copy_passes = 1

    def __init__(
        self,
        width: int,
        classes: int,
        views: int,
        decay: BelowOne = 0.99,
        weight: float | Mapping[str, Any] = RAMP,
        epochs: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise KdepError(
                f"the mean teacher has decay={decay}",
                expected="0 or more, below 1",
                fix="correct `decay` in the method's objective",
            )
        self.head, self.teacher_head = nn.Linear(width, classes), nn.Linear(width, classes)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher: nn.Module = nn.Identity()
        self.views, self.decay = views, float(decay)
        self.weight = as_schedule(weight, epochs)
        self._student: list[nn.Module] = []

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        self._student = [student]
        self.teacher = new_network()
        self.teacher.get_submodule("backbone").load_state_dict(student.state_dict())
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)

    def train(self, mode: bool = True) -> MeanTeacher:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def ema_probabilities(self, ctx: Context) -> Tensor:
        """Class probabilities [B, C] of the moving average for the next view of each image."""
        assert ctx.images is not None
        # Repeated here, because OpenMMLab backbones follow their parent module to training mode.
        self.teacher.eval()
        p = F.softmax(self.teacher_head(self.teacher(ctx.images)[1]), 1)
        return p.unflatten(0, (-1, self.views)).roll(-1, 1).flatten(0, 1)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        logits, weight = self.head(ctx.post_activation), self.weight(ctx.step, ctx.steps)
        difference = (F.softmax(logits, 1) - self.ema_probabilities(ctx)).square().mean(1)
        cross_entropy = F.cross_entropy(logits, ctx.labels, reduction="none")
        return {"cross_entropy": cross_entropy, "consistency": weight * difference}

    @torch.no_grad()
    def after_step(self) -> None:
        update_average(self.teacher.get_submodule("backbone"), self._student[0], self.decay)
        update_average(self.teacher_head, self.head, self.decay)

"""TinyBERT's second stage: a vision transformer learns a task from a teacher that was tuned on it.

For the first part of the training (`intermediate`, a fraction of the steps), the losses are those
of the first stage, `objectives.transformer_layers.TransformerLayers`; then it is the cross-entropy
between the class probabilities of teacher and student:

    L = labels L_task + L_layers                               in the first part,
    L = labels L_task - sum_c softmax(t / tau)_c log softmax(s / tau)_c     afterwards,

with the class scores t of the teacher and s of the student. The teacher receives the same augmented
crops as the student. Only the task's own network is scored and saved.

Source: Jiao et al., "TinyBERT", EMNLP Findings 2020, section 3.2;
huawei-noah/Pretrained-Language-Model `TinyBERT/task_distill.py`: no labels, tau = 1, and 10 epochs
with the losses of the layers, then 3 with the class probabilities (`intermediate` = 10 / 13). There
the mean of the cross-entropy over samples and classes is used; here it is the sum over classes, as
in the paper, so that it does not become smaller with the number of classes. Three more differences:
both parts are one training with the task's schedule (there, two trainings with a schedule each);
the projector is new (there, it is that of the first stage); the words of the task's sentences are
not replaced by others, images have the task's own augmentations.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from kdep_bench.bounds import Fraction, NotNegative, Positive
from kdep_bench.networks.attention import BlockRecorder, depth_and_width
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.transformer_layers import TransformerLayers
from kdep_bench.teachers.base import TeacherOutput
from kdep_bench.transfer.method import TransferContext, TransferMethod


class TransformerDistillation(TransferMethod):
    """Distillation of layers, then of class probabilities; see the top of this module.

    Args:
        intermediate: fraction of the steps in which the losses of the layers are used; 1: always.
        labels: weight of the task's own loss.
        tau: temperature of the class probabilities.
        attention, hidden, embedding, average_heads, relative: see `TransformerLayers`.
    """

    families = frozenset({"classification"})
    needs = frozenset({"tuned_teacher"})
    transformer: ClassVar[bool] = True
    reads_teacher_maps = False  # `teacher_output` runs the whole teacher instead

    def __init__(
        self,
        intermediate: Fraction = 10 / 13,
        labels: NotNegative = 0.0,
        tau: Positive = 1.0,
        attention: NotNegative = 1.0,
        hidden: NotNegative = 1.0,
        embedding: NotNegative = 1.0,
        average_heads: bool = True,
        relative: bool = True,
    ) -> None:
        super().__init__()
        self.intermediate, self.labels = float(intermediate), float(labels)
        self.tau = float(tau)
        self.options: dict[str, Any] = dict(
            attention=attention,
            hidden=hidden,
            embedding=embedding,
            average_heads=average_heads,
            relative=relative,
        )
        self.layers: Any = nn.Identity()
        self._teacher: list[Any] = []  # in a list, so that torch does not register it
        self._teacher_blocks: list[BlockRecorder] = []
        self._handles: list[RemovableHandle] = []
        self._scores: list[Tensor] = []
        self._prediction_steps = 0

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        assert teacher is not None
        student_net, teacher_net = cast(Any, model).backbone, cast(Any, teacher).backbone
        student_depth, student_width = depth_and_width(student_net, "the student")
        teacher_depth, teacher_width = depth_and_width(teacher_net, "the tuned teacher")
        self.layers = TransformerLayers(
            student_width,
            {"width": teacher_width},
            student_depth=student_depth,
            teacher_depth=teacher_depth,
            **self.options,
        )
        self.layers.attach(student_net, nn.Identity)  # it builds no network
        self._teacher = [teacher]
        self._teacher_blocks = [BlockRecorder(teacher_net, range(teacher_depth), "the teacher")]
        self._handles = [cast(Any, model).head.register_forward_hook(self._record)]

    def _record(self, _module: nn.Module, _args: Any, scores: Tensor) -> None:
        self._scores = [scores]

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """`prediction_steps`: the number of steps with the loss of the class probabilities."""
        for handle in self._handles:
            handle.remove()
        self.layers.remove()
        return {"prediction_steps": self._prediction_steps}

    @torch.no_grad()
    def teacher_output(self, images: Tensor) -> TeacherOutput:
        """Class scores (`logits`, [B, C]) and `attention` of the teacher."""
        self.extra_images += len(images)
        scores = self._teacher[0].to(images.device)(images.float(), mode="tensor").float()
        attention = self._teacher_blocks[0].take()
        return TeacherOutput(attention.final[:, 0], scores, attention=attention)

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        scores, output = self._scores.pop().float(), self.teacher_output(ctx.inputs)
        feature = output.pooled  # required by Context; this objective does not read it
        layers = self.layers.terms(Context(feature, feature, teacher=output))
        # Both losses are computed in every step, because every parameter must have a gradient when
        # the training is divided over processes.
        in_first_part = int(ctx.step < self.intermediate * ctx.steps)
        self._prediction_steps += 1 - in_first_part
        terms = {name: in_first_part * term for name, term in layers.items()}
        assert output.logits is not None
        prediction = soft_cross_entropy(scores, output.logits, self.tau)
        terms["prediction"] = (1 - in_first_part) * prediction
        # The task's own loss has the weight 1 already.
        terms["task"] = (self.labels - 1) * ctx.task_losses["loss"]
        return terms


def soft_cross_entropy(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """(B,): cross-entropy of class scores [B, C] with the teacher's probabilities, both at tau."""
    return F.cross_entropy(student / tau, (teacher / tau).softmax(1), reduction="none")

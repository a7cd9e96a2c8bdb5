"""Normalised knowledge distillation (NKD) and its teacher-free form (Yang et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective


def drop_class(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """The logits of all classes except y, [B, C - 1]."""
    # Indexing with a boolean mask would wait for the GPU.
    index = torch.arange(logits_BC.shape[1] - 1, device=logits_BC.device)
    return logits_BC.gather(1, index + (index >= y_B[:, None]))


def target_term(teacher_BC: Tensor, student_BC: Tensor, y_B: Tensor) -> Tensor:
    """-p^t_y log p^s_y per sample, [B]; p is the softmax of the logits."""
    p_t = F.softmax(teacher_BC, 1).gather(1, y_B[:, None])
    log_p_s = F.log_softmax(student_BC, 1).gather(1, y_B[:, None])
    return -(p_t * log_p_s)[:, 0]


def others_term(teacher_BC: Tensor, student_BC: Tensor, y_B: Tensor, tau: float) -> Tensor:
    """Cross-entropy [B] of the softmax over the classes other than y; 0 for C = 2."""
    p_t = F.softmax(drop_class(teacher_BC, y_B) / tau, 1)
    return -(p_t * F.log_softmax(drop_class(student_BC, y_B) / tau, 1)).sum(1)


class NKD(Objective):
    """CE(y) - p^t_y log p^s_y - gamma tau^2 sum_{i != y} q^t_i log q^s_i, label-free.

    p^t and p^s are the softmax of the teacher's and the student's logits. q is the softmax over the
    classes other than y, so that the last term does not depend on the teacher's confidence in y.
    The class y is the teacher's top-1 class here, and the label in NKDWithLabels. The student's
    linear head is dropped at export.

    Source: yzd-v/cls_KD `mmcls/models/dis_losses/nkd.py` (gamma 1.5, tau 1 on ImageNet),
    arXiv 2208.10139.

    Args:
        gamma: weight of the last term.
        tau: temperature of q.
        hard: weight of CE(y).
        width, teacher_classes: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes"})

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        gamma: NotNegative = 1.5,
        tau: Positive = 1.0,
        hard: NotNegative = 1.0,
    ) -> None:
        super().__init__()
        if not tau > 0:
            raise KdepError(
                f"NKD has tau={tau}",
                expected="a positive temperature",
                fix="correct `tau` in the method's objective",
            )
        self.head = nn.Linear(width, teacher_classes)
        self.gamma, self.tau, self.hard = float(gamma), float(tau), float(hard)

    def target(self, ctx: Context) -> Tensor:
        """The class y of each sample, [B]."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        return ctx.teacher.logits.argmax(1)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        student, teacher, y = self.head(ctx.post_activation), ctx.teacher.logits, self.target(ctx)
        return {
            "cross_entropy": self.hard * F.cross_entropy(student, y, reduction="none"),
            "target": target_term(teacher, student, y),
            "others": self.gamma * self.tau**2 * others_term(teacher, student, y, self.tau),
        }


class NKDWithLabels(NKD):
    """NKD as published: y is the label, which must be a class of the teacher's classifier."""

    needs = frozenset({"logits", "labels", "classes"})
    stage_arguments = NKD.stage_arguments | {"classes"}

    def __init__(self, width: int, teacher_classes: int, classes: int, **nkd_args: float) -> None:
        super().__init__(width, teacher_classes, **nkd_args)
        if classes != teacher_classes:
            raise KdepError(
                f"the data have {classes} classes and the teacher has {teacher_classes}, but NKD "
                "reads the teacher's logit of the label",
                fix="use the label-free NKD, or a teacher trained on these classes",
            )

    def target(self, ctx: Context) -> Tensor:
        assert ctx.labels is not None
        return ctx.labels


class TeacherFreeNKD(Objective):
    """CE(y) - w_b log p^s_y with w_b = p^s_y + v - (batch mean of p^s_y); no gradient for w_b.

    There is no teacher: p^t_y of NKD is replaced by the student's confidence in the label, shifted
    to the mean v.

    Source: yzd-v/cls_KD ("tf-nkd" of its older distiller), arXiv 2208.10139 section 3.3.

    Args:
        value: v, the value of the label in the target; 1 without mixup.
        width, classes: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    stage_arguments = frozenset({"width", "classes"})
    couples_samples = True

    def __init__(self, width: int, classes: int, value: NotNegative = 1.0) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.value = float(value)

    def weights(self, log_py_B: Tensor) -> Tensor:
        """The weights w_b, [B], with mean v and without gradient."""
        p = log_py_B.detach().exp()
        return p + self.value - p.mean()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        logits = self.head(ctx.post_activation)
        log_py = F.log_softmax(logits, 1).gather(1, ctx.labels[:, None])[:, 0]
        return {"cross_entropy": -log_py, "target": -self.weights(log_py) * log_py}

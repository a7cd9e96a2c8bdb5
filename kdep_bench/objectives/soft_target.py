"""Cross-entropy with the teacher's largest class probabilities (TinyViT, ECCV 2022)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count
from kdep_bench.objectives.base import Context, Objective


class SoftTarget(Objective):
    """L = -sum over classes of p log softmax(z_s), p the teacher's probabilities at temperature 1.

    Of p the `top_classes` largest are exact and the others equal, so that they sum to 1. A student
    whose probabilities are p has the loss H(p), not 0, and no gradient.

    Source: Wu et al. 2022; microsoft/Cream `TinyViT/main.py`, train_one_epoch_distill_using_saved_
    logits. The student's linear head is dropped at export.

    Args:
        top_classes: k; a cache stores 4 k bytes per view.
        width, teacher_classes: set by the pre-training stage.
    """

    needs = frozenset({"probabilities"})
    requires = frozenset({"width", "teacher_classes"})

    def __init__(self, width: int, teacher_classes: int, top_classes: Count) -> None:
        super().__init__()
        self.head = nn.Linear(width, teacher_classes)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.probabilities is not None
        log_q = F.log_softmax(self.head(ctx.after), 1)
        return {"soft_target": -(ctx.teacher.probabilities * log_q).sum(1)}

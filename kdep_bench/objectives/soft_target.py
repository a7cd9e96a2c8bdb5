"""Cross-entropy with the teacher's largest class probabilities (TinyViT, ECCV 2022)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count
from kdep_bench.objectives.base import Context, Objective


class SoftTarget(Objective):
    """L = -sum over classes of p log softmax(z_s), with p the teacher's probabilities.

    The `top_classes` largest values of p are the teacher's softmax at temperature 1; the rest of
    the probability is spread evenly over the other classes. The minimum of the loss is the entropy
    of p, not 0. The student's linear head is dropped at export.

    Source: Wu et al. 2022; microsoft/Cream `TinyViT/main.py`, function
    `train_one_epoch_distill_using_saved_logits`.

    Args:
        top_classes: k, number of probabilities that the teacher cache stores per view (4 k bytes).
            The cache stage reads this value from the config (`levels.top_classes`).
        width, teacher_classes: set by the pre-training stage.
    """

    needs = frozenset({"probabilities"})
    stage_arguments = frozenset({"width", "teacher_classes"})

    def __init__(self, width: int, teacher_classes: int, top_classes: Count) -> None:
        super().__init__()
        self.head = nn.Linear(width, teacher_classes)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.probabilities is not None
        log_q = F.log_softmax(self.head(ctx.post_activation), 1)
        return {"soft_target": -(ctx.teacher.probabilities * log_q).sum(1)}

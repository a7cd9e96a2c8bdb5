"""Supervised pre-training: cross-entropy of a linear head.

The head reads the pooled feature after the last activation (`Context.post_activation`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import BelowOne
from kdep_bench.objectives.base import Context, Objective


class CrossEntropy(Objective):
    """Cross-entropy of a linear head, which is dropped at export.

    Args:
        width: number of channels of the student's feature; set by the pre-training stage.
        classes: number of classes, set by the pre-training stage from the labels file.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
    """

    needs = frozenset({"labels"})
    stage_arguments = frozenset({"width", "classes"})

    def __init__(self, width: int, classes: int, label_smoothing: BelowOne = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.label_smoothing = label_smoothing

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        loss = F.cross_entropy(
            self.head(ctx.post_activation),
            ctx.labels,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return {"cross_entropy": loss}

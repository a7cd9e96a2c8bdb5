"""Distillation of the Gram matrix of an image's views, after arXiv 2112.11447."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective


class ViewGram(Objective):
    """w * |G^s - G^t|_F^2 / M^2 with G = A A^T, A [M, D] the features of an image's M views.

    Student and teacher features are first divided by the root mean square of their lengths in the
    batch, because the scales of the two networks are unrelated. There is no projector. The loss is
    invariant to a rotation of all views; with M = 1 only lengths are matched.

    Re-implementation of "Modality-level Gram Matrix" (arXiv 2112.11447) from its abstract only. The
    paper matches relations between the modalities of a sample; here, the fixed views of an image
    take the place of the modalities.

    Args:
        views: M, set by the pre-training stage.
        weight: w.
        cosine: divide each feature by its own length instead, so that only angles are compared.
    """

    needs = frozenset({"pooled", "views"})
    stage_arguments = frozenset({"views"})
    couples_samples = True

    def __init__(self, views: int, weight: Positive = 20.0, cosine: bool = False) -> None:
        super().__init__()
        if cosine and views < 2:
            raise KdepError(
                "the view Gram matrix of cosines has one view, and the cosine of a vector with "
                "itself is always 1",
                expected="two or more views",
                fix="set budget.views=2",
            )
        self.views, self.weight, self.cosine = views, float(weight), cosine
        self._order_checked = False

    def gram(self, x_BD: Tensor) -> Tensor:
        """Inner products [B / M, M, M] of the views of each image, of features [B, D]."""
        if self.cosine:
            x = F.normalize(x_BD, dim=1)
        else:
            x = x_BD / x_BD.square().sum(1).mean().clamp(min=1e-12).sqrt()
        stacked = x.unflatten(0, (-1, self.views))
        return stacked @ stacked.transpose(1, 2)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.rows is not None
        if not self._order_checked:  # once, because the check waits for a GPU
            self._check_order(ctx.rows)
            self._order_checked = True
        with torch.no_grad():
            target = self.gram(ctx.teacher.pooled)
        difference = (self.gram(ctx.pre_activation) - target).square().mean(2)
        # One value per view, the mean over a row of G; their mean over B is |.|_F^2 / M^2.
        return {"gram": self.weight * difference.flatten()}

    def _check_order(self, rows_B: Tensor) -> None:
        """Raises KdepError unless the views of each image are consecutive in the batch."""
        image = (rows_B // self.views).unflatten(0, (-1, self.views))
        if not bool((image == image[:, :1]).all()):
            raise KdepError(
                "the views of an image are not adjacent in the batch",
                expected=f"{self.views} consecutive rows per image",
                fix="add 'views' to the objective's `needs`",
            )

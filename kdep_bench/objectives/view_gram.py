"""The Gram matrix of the views of one image: a reading of modality-level Gram distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective


class ViewGram(Objective):
    """w * |G^s - G^t|_F^2 / M^2, G = A A^T of the M views of an image, A [M, D].

    Reconstruction of "Modality-level Gram Matrix" (arXiv 2112.11447), of which the abstract alone
    was read: relations between the *modalities* of a sample are matched, not only its output. Here
    the modalities are the fixed views (crops) of an image, so it is named for what it is. No
    projector; invariant to a rotation common to all views; M = 1 matches lengths alone.

    Features are divided by the root of their mean squared length over the batch first, on both
    sides, because the two networks' scales have nothing to do with each other; `cosine` divides
    each by its own length instead.

    Args:
        views: M, set by the pre-training stage.
        weight: w.
        cosine: compare angles between views and no lengths.
    """

    needs = frozenset({"pooled", "views"})
    requires = frozenset({"views"})
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
        self._looked = False

    def gram(self, x_BD: Tensor) -> Tensor:
        """[B / M, M, M] inner products of the views of each image."""
        if self.cosine:
            x = F.normalize(x_BD, dim=1)
        else:
            x = x_BD / x_BD.square().sum(1).mean().clamp(min=1e-12).sqrt()
        stacked = x.unflatten(0, (-1, self.views))
        return stacked @ stacked.transpose(1, 2)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.rows is not None
        if not self._looked:  # once: a GPU would be waited for in every step
            self._look(ctx.rows)
            self._looked = True
        with torch.no_grad():
            wanted = self.gram(ctx.teacher.pooled)
        difference = (self.gram(ctx.before) - wanted).square().mean(2)
        # One value a view: the mean over a row of G, so that the mean over B is |.|^2 / M^2.
        return {"gram": self.weight * difference.flatten()}

    def _look(self, rows_B: Tensor) -> None:
        image = (rows_B // self.views).unflatten(0, (-1, self.views))
        if not bool((image == image[:, :1]).all()):
            raise KdepError(
                "the views of an image are not adjacent in the batch",
                expected=f"{self.views} consecutive rows per image",
                fix="add 'views' to the objective's `needs`",
            )

"""Dynamic prior knowledge (DPK): the student decodes mixtures of its maps and the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kdep_bench.bounds import Count, Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.maps import Maps, check_levels, make_projectors, pairs


def batch_cka(x_BC: Tensor, y_BD: Tensor) -> Tensor:
    """Linear CKA (Kornblith et al. 2019) of two features over the batch, a scalar from 0 to 1.

    It is 0 if one of them is constant.
    """
    x, y = x_BC - x_BC.mean(0), y_BD - y_BD.mean(0)
    norms = (x @ x.T).norm() * (y @ y.T).norm()
    similarity = (x @ x.T * (y @ y.T)).sum() / norms
    return torch.where(norms > 0, similarity, torch.zeros_like(norms)).clamp(0, 1)


class DynamicPrior(Objective):
    """w * sum over levels of mean (decoder(encoder(H)) - F_t)^2 / mean F_t^2.

    The divisor is measured on the first batch. H is the teacher's map F_t at a random fraction r of
    the positions of each sample, and the projected student's map at the others. r = 1 - CKA, over
    the samples of the batch, of the student's and the teacher's map, each averaged over its
    positions: the less similar they are, the larger is the part taken from the teacher. Projector,
    encoder and decoder are dropped at export.

    Re-implementation of DPK (Qiu et al., ICLR 2023, arXiv 2206.06067) from the description in a
    survey and the authors' comments on CKA. The paper adds cross-entropy and may use another
    encoder and decoder (here two 3x3 convolutions). The random positions depend only on the number
    of the step and the level, so that a resumed run uses the same positions.

    Args:
        levels: {student level: teacher map}.
        weight: w; an output of zero has the loss w per level.
        hidden: channels between encoder and decoder.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})
    couples_samples = True

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: Positive = 20.0,
        hidden: Count = 128,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        self.levels, self.weight = dict(levels), float(weight)
        self.projectors = make_projectors(
            levels,
            student_maps,
            teacher_maps,
            lambda s, t: nn.Conv2d(s, t, 1),
            project_equal_channels=True,
        )
        # Encoder and decoder of each level; the name `decoders` is in checkpoints.
        self.decoders = make_projectors(
            levels,
            student_maps,
            teacher_maps,
            lambda _, t: _autoencoder(t, hidden),
            project_equal_channels=True,
        )
        self.mean_square = FirstBatch(len(levels))

    def teacher_fraction(self, ctx: Context, level: str) -> Tensor:
        """r of one level, a scalar without gradient."""
        assert ctx.teacher is not None
        student_map = ctx.maps[level].detach()
        teacher_map = ctx.teacher.maps[self.levels[level]]
        return 1 - batch_cka(student_map.mean((2, 3)), teacher_map.mean((2, 3)))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for k, (level, s_BCHW, t_BCHW) in enumerate(pairs(ctx, self.levels, self.projectors)):
            noise = np.random.default_rng([ctx.step, k]).random(
                (len(s_BCHW), 1, *s_BCHW.shape[2:]), np.float32
            )
            is_teacher = torch.from_numpy(noise).to(s_BCHW.device) < self.teacher_fraction(
                ctx, level
            )
            output = self.decoders[level](torch.where(is_teacher, t_BCHW, s_BCHW))
            mean_square = self.mean_square(
                partial(_mean_square, t_BCHW), f"the teacher's map for {level}", k
            )
            error = (output - t_BCHW).square().mean((1, 2, 3))
            out[level] = self.weight / mean_square * error
        return out


def _autoencoder(channels: int, hidden: int) -> nn.Sequential:
    """Encoder and decoder: two 3x3 convolutions with `hidden` channels between them."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 3, padding=1),
    )


def _mean_square(t: Tensor) -> Tensor:
    """Mean square over all elements, a scalar."""
    return t.square().mean()

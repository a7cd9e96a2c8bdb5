"""Attention-based feature distillation: learned weights for pairs of student and teacher maps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, Fraction, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.maps import Maps, check_levels


def spatial_pattern(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Squared map averaged over channels, resized to `size`, divided by its norm: [B, H W]."""
    mean_square = map_BCHW.square().mean(1, keepdim=True)
    return F.normalize(F.adaptive_avg_pool2d(mean_square, size).flatten(1), dim=1)


def strongest(weights_BST: Tensor, count: int) -> Tensor:
    """The `count` largest weights of the last dimension, rescaled to sum 1; the others are 0."""
    threshold = weights_BST.topk(count, dim=2).values[..., -1:]
    largest = torch.where(weights_BST >= threshold, weights_BST, 0.0)
    return largest / largest.sum(2, keepdim=True)


class AttentionFeatures(Objective):
    """w * sum over teacher maps t of sum over student maps s of a_ts mean (n(F_s) - n(F_t))^2.

    S and T are the numbers of student and teacher maps. n is `spatial_pattern` at the size of the
    teacher's map. The attention a_ts of a sample is the
    softmax over the student's maps of (k_s' q_t + p_s' p_t) / sqrt(d). The queries q_t and the keys
    k_s are learned functions of the pooled maps of teacher and student; p_s and p_t are learned
    vectors. All layers of the attention are dropped at export.

    Source: Ji, Heo, Park, "Show, Attend and Distill" (AAAI 2021); clovaai/attention-feature-
    distillation `distill/AFD.py` (d = 128) and `main.py` (w = 200). There it is added to logit
    distillation and cross-entropy; here it is the only loss (label-free).

    Args:
        levels: {student level: teacher map}. All pairs of a level and a map are compared, not only
            those of one entry.
        weight: w.
        dim: d.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: Positive = 200.0,
        dim: Count = 128,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        self.student_levels = list(levels)
        self.teacher_levels = list(dict.fromkeys(levels.values()))
        self.weight, self.dim = float(weight), int(dim)
        n_teacher, n_student = len(self.teacher_levels), len(self.student_levels)
        self.queries = nn.ModuleDict(
            {t: _normalised_linear(teacher_maps[t]["channels"], dim) for t in self.teacher_levels}
        )
        self.keys = nn.ModuleDict(
            {s: _normalised_linear(student_maps[s]["channels"], dim) for s in self.student_levels}
        )
        self.bilinear = _normalised_linear(dim, dim * n_teacher)
        self.teacher_positions = nn.Parameter(torch.empty(n_teacher, dim))
        self.student_positions = nn.Parameter(torch.empty(n_student, dim))
        nn.init.xavier_normal_(self.teacher_positions)
        nn.init.xavier_normal_(self.student_positions)

    def scores(self, ctx: Context) -> Tensor:
        """[B, S, T]: the attention of every pair of maps before the softmax."""
        assert ctx.teacher is not None
        teacher_maps, student_maps = ctx.teacher.maps, ctx.maps
        q_BTd = torch.stack(
            [self.queries[t](teacher_maps[t].mean((2, 3))) for t in self.teacher_levels], 1
        )
        k_BSd = torch.stack(
            [self.keys[s](student_maps[s].mean((2, 3))).relu() for s in self.student_levels], 1
        )
        k_BSTd = self.bilinear(k_BSd.flatten(0, 1)).unflatten(0, k_BSd.shape[:2])
        k_BSTd = k_BSTd.unflatten(2, (len(self.teacher_levels), self.dim))
        positions_ST = self.student_positions @ self.teacher_positions.T
        return (torch.einsum("bstd,btd->bst", k_BSTd, q_BTd) + positions_ST) / math.sqrt(self.dim)

    def attention(self, ctx: Context) -> Tensor:
        """[B, S, T]: weights of the pairs; for every teacher map they sum to 1."""
        return self.scores(ctx).softmax(1)

    def distances(self, ctx: Context) -> Tensor:
        """[B, S, T]: mean squared difference of the spatial patterns of every pair of maps."""
        assert ctx.teacher is not None
        columns = []
        for t in self.teacher_levels:
            teacher_map = ctx.teacher.maps[t]
            size = (teacher_map.shape[2], teacher_map.shape[3])
            pattern = spatial_pattern(teacher_map, size)
            student_patterns = [spatial_pattern(ctx.maps[s], size) for s in self.student_levels]
            columns.append(
                torch.stack([(s - pattern).square().mean(1) for s in student_patterns], 1)
            )
        return torch.stack(columns, 2)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {"patterns": self.weight * (self.attention(ctx) * self.distances(ctx)).sum((1, 2))}


class StrongestTeacherMaps(AttentionFeatures):
    """AttentionFeatures with only the teacher maps of largest attention for each student map.

    The softmax is over the teacher's maps instead of the student's, and for each student map only
    the largest weights are used. If at least two weights are used, the selection can change during
    training. Squared differences are summed over positions instead of averaged: the mean difference
    is smallest for the largest map, so the attention would select that map.

    Re-implementation of representative teacher keys (RTK, arXiv 2206.12788) from its abstract only;
    the rule by which the paper discards maps may differ.

    Args:
        keep: fraction of the teacher's maps that are used for each student map, rounded up.
        levels, weight, dim, student_maps, teacher_maps: as in AttentionFeatures.
    """

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: Positive = 10.0,
        dim: Count = 128,
        keep: Fraction = 0.5,
    ) -> None:
        super().__init__(levels, student_maps, teacher_maps, weight, dim)
        self.count = math.ceil(keep * len(self.teacher_levels))
        if self.count < 1:
            raise KdepError(
                f"keep={keep} leaves no map of the teacher",
                expected="a fraction above 0 and at most 1",
                fix="correct `keep` in the method's objective",
            )

    def distances(self, ctx: Context) -> Tensor:
        """[B, S, T]: squared distances of the spatial patterns, from 0 to 2 for any size."""
        assert ctx.teacher is not None
        positions = [ctx.teacher.maps[t][0, 0].numel() for t in self.teacher_levels]
        return super().distances(ctx) * torch.tensor(positions, device=ctx.pre_activation.device)

    def attention(self, ctx: Context) -> Tensor:
        """[B, S, T]: weights of the pairs; for every student map they sum to 1."""
        return strongest(self.scores(ctx).softmax(2), self.count)


def _normalised_linear(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer and a BatchNorm."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs))

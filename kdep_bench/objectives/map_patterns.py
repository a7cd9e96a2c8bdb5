"""Patterns of feature maps that do not depend on the number of channels: no learned projector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.attention_features import spatial_pattern
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.maps import Maps, check_levels
from kdep_bench.objectives.pursuhint import hint_levels


def position_cosines(map_BCHW: Tensor) -> Tensor:
    """Cosines between the channel vectors of all positions of a map: [B, H W, H W]."""
    unit_BCN = F.normalize(map_BCHW.flatten(2), dim=1)
    return unit_BCN.transpose(1, 2) @ unit_BCN


class MapPatterns(Objective):
    """w * sum over levels of mean (P(F_s) - P(F_t))^2 / mean (P(1) - P(F_t))^2.

    P(F) is the pattern of a map F: its size depends on the map's positions, not on its channels.
    P(1) is the pattern of a constant map, so a student without spatial structure has the loss w per
    level, whatever the teacher. The divisor is measured on the first batch. The teacher's map is
    resized to the student's size. Nothing is learned in addition to the student, and no labels are
    read.

    Args:
        levels: {student level: teacher map}.
        weight: w.
        student_maps, teacher_maps: set by the pre-training stage.

    Raises:
        KdepError: an unknown level, or a student map with one position, which has no pattern.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: Positive = 20.0,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        for level in levels:
            if student_maps[level].get("side", 2) < 2:
                raise KdepError(
                    f"the student's map {level} has one position, and so no pattern",
                    expected="maps of two or more positions per side",
                    fix="raise input_px of the student, or remove the level from `levels`",
                )
        self.levels, self.weight = dict(levels), float(weight)
        self.scale = FirstBatch(len(levels))

    @staticmethod
    @abstractmethod
    def pattern(map_BCHW: Tensor) -> Tensor:
        """The pattern of a map, [B, ...]."""

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        out: dict[str, Tensor] = {}
        for k, (level, name) in enumerate(self.levels.items()):
            s = ctx.maps[level]
            t = resize_map(ctx.teacher.maps[name], (s.shape[2], s.shape[3]))
            target = self.pattern(t.to(s.dtype))
            constant = self.pattern(torch.ones_like(s))
            reference = self.scale(
                partial(_mean_square, constant, target), f"the pattern of the map {name}", k
            )
            difference = (self.pattern(s) - target).square().flatten(1).mean(1)
            out[level] = self.weight / reference * difference
        return out


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


class SpatialAttention(MapPatterns):
    """MapPatterns of where a map is large: its mean square over channels, normalised per image.

    Source: Zagoruyko and Komodakis, ICLR 2017 (attention transfer, activation-based, p = 2), whose
    weight is 1000 per level, without the divisor.
    """

    @staticmethod
    def pattern(map_BCHW: Tensor) -> Tensor:
        return spatial_pattern(map_BCHW, (map_BCHW.shape[2], map_BCHW.shape[3]))


class PositionRelations(MapPatterns):
    """MapPatterns of which positions of an image are similar: cosines between all of them.

    Source: Liu et al., CVPR 2019 (the pair-wise term of structured knowledge distillation, without
    its aggregation of neighbouring positions). It corresponds to the distillation of relations
    between tokens in language models.
    """

    @staticmethod
    def pattern(map_BCHW: Tensor) -> Tensor:
        return position_cosines(map_BCHW)


class ClusteredAttention(SpatialAttention):
    """SpatialAttention at the levels that represent clusters of levels, see Pursuhint.

    Args:
        levels: {student level: teacher map}, the candidates.
        points: number of clusters.
        weight: weight of each chosen level.
        layer_distances: {teacher map: {teacher map: distance}}, set by the pre-training stage.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    stage_arguments = MapPatterns.stage_arguments | {"layer_distances"}

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        layer_distances: Mapping[str, Mapping[str, float]],
        points: Count = 2,
        weight: Positive = 10.0,
    ) -> None:
        check_levels(levels, student_maps, teacher_maps)
        chosen = hint_levels(levels, teacher_maps, layer_distances, points)
        super().__init__(chosen, student_maps, teacher_maps, weight)


class ClusteredRelations(PositionRelations):
    """PositionRelations at the levels that represent clusters of levels, see Pursuhint.

    Args:
        levels: {student level: teacher map}, the candidates.
        points: number of clusters.
        weight: weight of each chosen level.
        layer_distances: {teacher map: {teacher map: distance}}, set by the pre-training stage.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    stage_arguments = MapPatterns.stage_arguments | {"layer_distances"}

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        layer_distances: Mapping[str, Mapping[str, float]],
        points: Count = 2,
        weight: Positive = 10.0,
    ) -> None:
        check_levels(levels, student_maps, teacher_maps)
        chosen = hint_levels(levels, teacher_maps, layer_distances, points)
        super().__init__(chosen, student_maps, teacher_maps, weight)

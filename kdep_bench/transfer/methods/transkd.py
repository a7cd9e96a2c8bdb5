"""TransKD base: the tuned teacher's maps and patch embeddings, regressed during segmentation.

L = L_task + weight * sum_i HCL(CSF(F^s)_i, F^t_i) + sum_i beta_i * mean (W_i E^s_i - E^t_i)^2,
over the levels i, from the finest to the deepest.

* CSF, cross selective fusion, from the deepest level up: x_i = BN(conv1x1(F^s_i)); at every level
  but the deepest, y is the fused map of the level below, enlarged (nearest), and
  x_i <- a * x_i + (1 - a) * y with a = the softmax over the two of one value per channel, from the
  pooled x_i + y. CSF_i = BN(conv3x3(x_i)), with the teacher's channels. One level alone is the two
  convolutions.
* HCL, hierarchical context loss: (m + sum_k m_k / 2^k) / (1 + sum_k 1 / 2^k), where m is the mean
  squared error of the maps and m_1, m_2, ... those of the maps pooled to 4x4, 2x2 and 1x1, as far
  as they are smaller than the map. On 1x1 maps it is the mean squared error.
* Patch embeddings E_i: what a network computes when it goes to level i's resolution, before the
  level's own blocks. W_i is linear on the channels. A level with beta_i = 0 has none of it.

Source: Liu et al., "TransKD" (arXiv 2202.13393) and RuipingL/TransKD, the form "Base".

Differs: the task's cross-entropy is that of the recipe (the authors' weights its classes). In a
convolutional network the patch embedding is the output of the first block of a level's stage (of
the stem at the first level), which is this project's reading. Maps of another size than the
student's are resized to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, NotNegative
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.maps import Maps, check_levels
from kdep_bench.transfer.method import TransferContext, TransferMethod

POOLED = (4, 2, 1)
NOISE_PX = 64  # side of the noise on which the widths of the patch embeddings are read
# Class of a backbone -> module paths of its patch embeddings at strides 4, 8, 16 and 32.
EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "ResNet": ("maxpool", "layer2.0", "layer3.0", "layer4.0"),
    "MobileNetV2": ("layer2.0", "layer3.0", "layer4.0", "layer6.0"),
    "EfficientNetLite": ("blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.5.0"),
}
# The same of the networks that TimmBackbone wraps.
TIMM_EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "ConvNeXt": ("net.stem", *(f"net.stages.{i}.downsample" for i in (1, 2, 3))),
    "SwinTransformer": ("net.patch_embed", *(f"net.layers.{i}.downsample" for i in (1, 2, 3))),
}
CHANNELS_LAST = frozenset({"SwinTransformer"})  # their embeddings are [B, H, W, C]
STRIDES = (4, 8, 16, 32)


class TransKD(TransferMethod):
    """TransKD base, on every level of `levels`.

    Args:
        levels: {student level: teacher map}; fused from the deepest to the finest by stride.
        weight: of the hierarchical context loss.
        betas: {student level: weight of its patch embedding}; none for a level without an entry.
        channels: width of the fused maps.
        student_maps, teacher_maps: set by the transfer stage.
    """

    families = frozenset({"segmentation"})
    needs = frozenset({"tuned_teacher"})
    requires = frozenset({"student_maps", "teacher_maps"})
    backbones = frozenset({"ResNet", "MobileNetV2", "EfficientNetLite", "TimmBackbone"})

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: NotNegative = 1.0,
        betas: Mapping[str, NotNegative] = MappingProxyType({}),
        channels: Count = 64,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        for student_map in betas:
            if student_map not in levels:
                raise unknown_name("level in `betas` of TransKD", student_map, levels)
        # A stage's spec is stored with sorted keys: the order of `levels` is lost.
        ordered = sorted(levels, key=lambda student_map: student_maps[student_map]["stride"])
        self.levels, self.weight = (
            {student_map: levels[student_map] for student_map in ordered},
            float(weight),
        )
        self.betas = {student_map: float(betas.get(student_map, 0.0)) for student_map in ordered}
        self.fusion = CrossSelectiveFusion(
            [student_maps[student_map]["channels"] for student_map in ordered],
            [teacher_maps[teacher_map]["channels"] for teacher_map in self.levels.values()],
            int(channels),
        )
        self.embeddings = nn.ModuleDict()
        self._taps: list[Embeddings] = []  # of the student and the teacher, in no module

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        assert teacher is not None
        used = [student_map for student_map in self.levels if self.betas[student_map] > 0]
        if not used:
            return
        student = Embeddings(cast(nn.Module, model.backbone), used)
        other = Embeddings(
            cast(nn.Module, teacher.backbone), [self.levels[student_map] for student_map in used]
        )
        own_widths, widths = student.widths(), other.widths()
        for student_map in used:
            shape = own_widths[student_map], widths[self.levels[student_map]]
            self.embeddings[student_map] = nn.Conv2d(*shape, 1)
        self._taps = [student, other]

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        fused = self.fusion([ctx.maps[student_map] for student_map in self.levels])
        terms = []
        for made, teacher_map in zip(fused, self.levels.values(), strict=True):
            target = resize_map(ctx.teacher_maps[teacher_map], (made.shape[2], made.shape[3]))
            terms.append(hierarchical_context(made, target))
        found = {"hcl": self.weight * torch.stack(terms).sum(0)}
        if self._taps:
            found["pea"] = self._embedded()
        return found

    def _embedded(self) -> Tensor:
        student_map, others = (tap.take() for tap in self._taps)
        terms = []
        for name, layer in self.embeddings.items():
            made = layer(student_map[name].float())
            target = resize_map(others[self.levels[name]].float(), (made.shape[2], made.shape[3]))
            terms.append(self.betas[name] * mean_square(made - target))
        return torch.stack(terms).sum(0)


# ---- parts ----


def mean_square(x: Tensor) -> Tensor:
    """(B,) mean over all but the first dimension."""
    return x.square().flatten(1).mean(1)


def hierarchical_context(made: Tensor, target: Tensor) -> Tensor:
    """HCL of two maps [B, C, H, W], by sample: (B,)."""
    total, weights, weight = mean_square(made - target), 1.0, 1.0
    for side in POOLED:
        if side >= made.shape[2]:
            continue
        weight /= 2
        pooled = [F.adaptive_avg_pool2d(x, side) for x in (made, target)]
        total = total + weight * mean_square(pooled[0] - pooled[1])
        weights += weight
    return total / weights


class CrossSelectiveFusion(nn.Module):
    """The student's levels, fused from the deepest up, each with the teacher's channels.

    Args:
        student, teacher: channels of the levels, from the finest to the deepest.
        channels: width of the fused maps.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], channels: int) -> None:
        super().__init__()
        last = len(student) - 1
        self.fusions = nn.ModuleList(
            [
                Fusion(s, t, channels, alone=i == last)
                for i, (s, t) in enumerate(zip(student, teacher, strict=True))
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, C_s, H, W] of each level -> [B, C_t, H, W] of each level."""
        out: list[Tensor] = []
        below: Tensor | None = None
        for x, fusion in reversed(list(zip(maps, self.fusions, strict=True))):
            made, below = fusion(x, below)
            out.insert(0, made)
        return out


class Fusion(nn.Module):
    """One level of the fusion; `alone` for the deepest, which has nothing below it."""

    def __init__(self, student: int, teacher: int, channels: int, alone: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(student, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(channels, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher)
        )
        self.select = None if alone else Selection(channels)

    def forward(self, x: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> (map with the teacher's channels, the fused map that the level above reads)."""
        x = self.reduce(x)
        if below is not None and self.select is not None:
            y = F.interpolate(below, size=x.shape[2:], mode="nearest")
            a = self.select(x + y)
            x = a * x + (1 - a) * y
        return self.expand(x), x


class Selection(nn.Module):
    """[B, C, H, W] -> [B, C, 1, 1]: the part of a level's own map in the fused one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 16, 32)
        self.squeeze = nn.Conv2d(channels, narrow, 1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.choose = nn.Conv2d(narrow, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.squeeze(F.adaptive_avg_pool2d(x, 1))
        if len(z) > 1:  # one pooled value has no variance: as in the authors' code
            z = self.norm(z)
        return self.choose(F.relu(z)).unflatten(1, (2, -1)).softmax(1)[:, 0]


class Embeddings:
    """Reads the patch embeddings of a backbone during its forward pass.

    Args:
        backbone: of a class in EMBEDDINGS or, in a TimmBackbone, in TIMM_EMBEDDINGS.
        levels: names of the levels, such as "s8".
    """

    def __init__(self, backbone: nn.Module, levels: Sequence[str]) -> None:
        self.backbone = backbone
        self._seen: dict[str, Tensor] = {}
        paths = embedding_paths(backbone)
        for level in levels:
            if level not in paths:
                raise KdepError(
                    f"the level {level} of the backbone {type(backbone).__name__} has no patch "
                    "embedding",
                    expected=f"one of {', '.join(paths)}",
                    fix="set its beta to 0 in the method's config",
                )
            backbone.get_submodule(paths[level]).register_forward_hook(self._record(level))

    def _record(self, level: str) -> Any:
        last = type(getattr(self.backbone, "net", None)).__name__ in CHANNELS_LAST

        def record(_module: nn.Module, _args: Any, out: Tensor) -> None:
            self._seen[level] = out.permute(0, 3, 1, 2) if last else out

        return record

    def take(self) -> dict[str, Tensor]:
        """{level: [B, C, H, W]} of the forward pass just done; they are then released."""
        seen, self._seen = self._seen, {}
        return seen

    @torch.no_grad()
    def widths(self) -> dict[str, int]:
        """{level: channels}, read on a pattern."""
        mode = self.backbone.training
        self.backbone.eval()  # mm backbones return nothing from it
        self.backbone(torch.linspace(-1, 1, 3 * NOISE_PX**2).view(1, 3, NOISE_PX, NOISE_PX))
        self.backbone.train(mode)
        return {k: int(v.shape[1]) for k, v in self.take().items()}


def embedding_paths(backbone: nn.Module) -> dict[str, str]:
    """{level: module path of its patch embedding}; KdepError for a network that is not known."""
    kind = type(backbone).__name__
    paths = EMBEDDINGS.get(kind)
    if kind == "TimmBackbone":
        kind = type(backbone.net).__name__
        paths = TIMM_EMBEDDINGS.get(kind)
    if paths is None:
        raise KdepError(
            f"the patch embeddings of the network {kind} are not known",
            expected=f"one of {', '.join(sorted({*EMBEDDINGS, *TIMM_EMBEDDINGS}))}",
            fix="set all betas to 0 in the method's config, or use another student",
        )
    return {f"s{stride}": path for stride, path in zip(STRIDES, paths, strict=True)}

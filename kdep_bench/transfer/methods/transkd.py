"""Transformer distillation (TransKD): maps and patch embeddings of a tuned teacher are regressed.

L = L_task + weight * sum_i HCL(CSF(F^s)_i, F^t_i) + sum_i beta_i * mean (W_i E^s_i - E^t_i)^2,
over the levels i, with maps F and patch embeddings E of student (s) and teacher (t).

* CSF, cross selective fusion, computed from the deepest (coarsest) level to the finest:
  x_i = BN(conv1x1(F^s_i)). At every level but the deepest, x_i is replaced by
  a * x_i + (1 - a) * y. There y is the fused map of the next deeper level, enlarged (nearest
  neighbour). a is one weight per channel; a small network with a softmax computes it from the
  pooled x_i + y. Then CSF_i = BN(conv3x3(x_i)), with the teacher's number of channels.
* HCL, hierarchical context loss: (m + sum_k m_k / 2^k) / (1 + sum_k 1 / 2^k). m is the mean squared
  error of the maps. m_1, m_2, ... are those of the maps pooled to 4x4, 2x2 and 1x1; sizes that are
  not smaller than the map are left out of this list.
* Patch embeddings E_i: the output of the layer with which a network changes to the resolution of
  level i, before the blocks of that level. W_i is a linear map of the channels (a 1x1
  convolution). Levels with beta_i = 0 have no such term.

The version "Base" is the formula above. The versions "GL" (with the GL-Mixer) and "EA" (with
embedding assistants) change E^s_i before it is compared; see `transkd_embeddings.py`.

Source: Liu et al., "TransKD" (arXiv 2202.13393) and RuipingL/TransKD.

Differences: the authors use class weights in the cross-entropy of the task; here there are none.
For convolutional networks, which the paper does not cover, the patch embedding is the output of the
first block of a stage, and of the stem for the first level. The teacher's maps are resized to the
student's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from kdep_bench.bounds import Count, NotNegative
from kdep_bench.errors import KdepError
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.maps import Maps, check_levels
from kdep_bench.transfer.embedding_betas import check_betas
from kdep_bench.transfer.method import TransferContext, TransferMethod
from kdep_bench.transfer.methods.transkd_embeddings import EmbeddingAssistant, GlobalLocalMixer
from kdep_bench.transfer.parallel import can_normalise

POOLED = (4, 2, 1)  # sides of the pooled maps of the hierarchical context loss
TEST_PX = 64  # side of the image with which the widths of the patch embeddings are determined
# Module paths of the patch embeddings at strides 4, 8, 16 and 32, by class of the backbone.
EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "ResNet": ("maxpool", "layer2.0", "layer3.0", "layer4.0"),
    "MobileNetV2": ("layer2.0", "layer3.0", "layer4.0", "layer6.0"),
    "EfficientNetLite": ("blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.5.0"),
}
# The same for the networks that TimmBackbone wraps.
TIMM_EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "ConvNeXt": ("net.stem", *(f"net.stages.{i}.downsample" for i in (1, 2, 3))),
    "SwinTransformer": ("net.patch_embed", *(f"net.layers.{i}.downsample" for i in (1, 2, 3))),
}
CHANNELS_LAST = frozenset({"SwinTransformer"})  # networks with embeddings [B, H, W, C]
STRIDES = (4, 8, 16, 32)


class TransKD(TransferMethod):
    """TransKD; see the top of this module.

    Args:
        levels: {student map: teacher map}, one entry per level.
        weight: weight of the hierarchical context loss.
        betas: {student map: beta of that level}; 0 for missing entries.
        channels: number of channels of the fused maps.
        mixer: whether the deepest patch embedding passes the GL-Mixer ("GL").
        assistants: whether every level with a beta above 0 has an embedding assistant ("EA").
        student_maps, teacher_maps: set by the transfer stage.
    """

    families = frozenset({"segmentation"})
    needs = frozenset({"tuned_teacher"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})
    backbones = frozenset({"ResNet", "MobileNetV2", "EfficientNetLite", "TimmBackbone"})
    plan_check = "kdep_bench.transfer.embedding_betas.check_betas"

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: NotNegative = 1.0,
        betas: Mapping[str, NotNegative] = MappingProxyType({}),
        channels: Count = 64,
        mixer: bool = False,
        assistants: bool = False,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        options = {"mixer": mixer, "assistants": assistants}
        check_betas({"levels": levels, "betas": betas, **options})
        # Sorted by stride, because the order of `levels` is lost in a stored spec.
        ordered = sorted(levels, key=lambda student_map: student_maps[student_map]["stride"])
        self.levels = {student_map: levels[student_map] for student_map in ordered}
        self.weight = float(weight)
        self.betas = {student_map: float(betas.get(student_map, 0.0)) for student_map in ordered}
        self.fusion = CrossSelectiveFusion(
            [student_maps[student_map]["channels"] for student_map in ordered],
            [teacher_maps[teacher_map]["channels"] for teacher_map in self.levels.values()],
            int(channels),
        )
        self.strides = {name: int(student_maps[name]["stride"]) for name in ordered}
        self.widths = {name: int(student_maps[name]["channels"]) for name in ordered}
        self.has_assistants, self.has_mixer = bool(assistants), bool(mixer)
        self.embeddings, self.assistants = nn.ModuleDict(), nn.ModuleDict()
        self.mixers = nn.ModuleDict()  # of the deepest level only
        # [of the student, of the teacher]; empty if all betas are 0
        self._taps: list[Embeddings] = []

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        assert teacher is not None
        used = [student_map for student_map in self.levels if self.betas[student_map] > 0]
        if not used:
            return
        student_tap = Embeddings(cast(nn.Module, model.backbone), used)
        teacher_tap = Embeddings(
            cast(nn.Module, teacher.backbone), [self.levels[student_map] for student_map in used]
        )
        student_widths, teacher_widths = student_tap.widths(), teacher_tap.widths()
        for student_map in used:
            in_channels = student_widths[student_map]
            out_channels = teacher_widths[self.levels[student_map]]
            self.embeddings[student_map] = nn.Conv2d(in_channels, out_channels, 1)
            if self.has_mixer and student_map == list(self.levels)[-1]:
                self.mixers[student_map] = GlobalLocalMixer(in_channels)
            if self.has_assistants:
                self.assistants[student_map] = self._assistant(student_map, out_channels)
        self._taps = [student_tap, teacher_tap]

    def finish(self, model: nn.Module) -> dict[str, Any]:
        for tap in self._taps:
            tap.remove()
        return {}

    def _assistant(self, student_map: str, out_channels: int) -> EmbeddingAssistant:
        """The embedding assistant of a level."""
        names = list(self.levels)
        level = names.index(student_map)
        stride, in_channels = self.strides[student_map], 3  # of the image
        if level > 0:
            finer = names[level - 1]
            stride, in_channels = stride // self.strides[finer], self.widths[finer]
        return EmbeddingAssistant(in_channels, out_channels, stride, level, len(names))

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        fused = self.fusion([ctx.maps[student_map] for student_map in self.levels])
        terms = []
        for prediction, teacher_map in zip(fused, self.levels.values(), strict=True):
            size = (prediction.shape[2], prediction.shape[3])
            target = resize_map(ctx.teacher_maps[teacher_map], size)
            terms.append(hierarchical_context(prediction, target))
        losses = {"hcl": self.weight * torch.stack(terms).sum(0)}
        if self._taps:
            losses["pea"] = self._embedding_loss(ctx)
        return losses

    def _embedding_loss(self, ctx: TransferContext) -> Tensor:
        """(B,) the weighted sum of the terms of the patch embeddings."""
        student, teacher = (tap.take() for tap in self._taps)
        names = list(self.levels)
        finer_maps = {names[0]: ctx.inputs} | {
            name: ctx.maps[finer] for finer, name in pairwise(names)
        }
        terms = []
        for name, layer in self.embeddings.items():
            embedding = student[name].float()
            if name in self.mixers:
                embedding = self.mixers[name](embedding)
            prediction = layer(embedding)
            if name in self.assistants:
                prediction = self.assistants[name](prediction, finer_maps[name])
            size = (prediction.shape[2], prediction.shape[3])
            target = resize_map(teacher[self.levels[name]].float(), size)
            terms.append(self.betas[name] * mean_square(prediction - target))
        return torch.stack(terms).sum(0)


# ---- parts ----


def mean_square(x: Tensor) -> Tensor:
    """(B,) mean of the squares over all dimensions but the first."""
    return x.square().flatten(1).mean(1)


def hierarchical_context(prediction: Tensor, target: Tensor) -> Tensor:
    """The hierarchical context loss of two maps [B, C, H, W], for each sample: (B,)."""
    total, weights, weight = mean_square(prediction - target), 1.0, 1.0
    for side in POOLED:
        if side >= prediction.shape[2]:
            continue
        weight /= 2
        pooled = [F.adaptive_avg_pool2d(x, side) for x in (prediction, target)]
        total = total + weight * mean_square(pooled[0] - pooled[1])
        weights += weight
    return total / weights


class CrossSelectiveFusion(nn.Module):
    """Cross selective fusion of the student's maps; see the top of this module.

    Args:
        student, teacher: numbers of channels of the levels, from the finest to the deepest.
        channels: number of channels of the fused maps.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], channels: int) -> None:
        super().__init__()
        last = len(student) - 1
        self.fusions = nn.ModuleList(
            [
                Fusion(s, t, channels, is_deepest=i == last)
                for i, (s, t) in enumerate(zip(student, teacher, strict=True))
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_s, H, W] of the levels -> maps [B, C_t, H, W] with the teacher's channels."""
        out: list[Tensor] = []
        deeper: Tensor | None = None
        for x, fusion in reversed(list(zip(maps, self.fusions, strict=True))):
            expanded, deeper = fusion(x, deeper)
            out.insert(0, expanded)
        return out


class Fusion(nn.Module):
    """One level of the fusion.

    Args:
        student, teacher: numbers of channels of the student's and the teacher's map.
        channels: number of channels of the fused map.
        is_deepest: whether this is the deepest level, which is not fused with another level.
    """

    def __init__(self, student: int, teacher: int, channels: int, is_deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(student, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(channels, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher)
        )
        self.select = None if is_deepest else Selection(channels)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fuses the student's map `x` with the fused map of the next deeper level.

        Returns:
            the map with the teacher's channels, and the fused map for the next finer level.
        """
        x = self.reduce(x)
        if deeper is not None and self.select is not None:
            y = F.interpolate(deeper, size=x.shape[2:], mode="nearest")
            weight = self.select(x + y)
            x = weight * x + (1 - weight) * y
        return self.expand(x), x


class Selection(nn.Module):
    """[B, C, H, W] -> [B, C, 1, 1]: the weight per channel of a level's map in the fused map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 32)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.choose = nn.Conv2d(hidden, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.squeeze(F.adaptive_avg_pool2d(x, 1))
        if can_normalise(len(z)):  # as in the authors' code, which leaves it out for one image
            z = self.norm(z)
        return self.choose(F.relu(z)).unflatten(1, (2, -1)).softmax(1)[:, 0]


class Embeddings:
    """Records the patch embeddings of a backbone during its forward pass.

    Args:
        backbone: a backbone of a class in EMBEDDINGS, or a TimmBackbone with a network of a class
            in TIMM_EMBEDDINGS.
        levels: names of the levels, such as "s8".

    Raises:
        KdepError: the patch embeddings of the backbone or of a level are not known.
    """

    def __init__(self, backbone: nn.Module, levels: Sequence[str]) -> None:
        self.backbone = backbone
        self._recorded: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        paths = embedding_paths(backbone)
        for level in levels:
            if level not in paths:
                raise KdepError(
                    f"the level {level} of the backbone {type(backbone).__name__} has no patch "
                    "embedding",
                    expected=f"one of {', '.join(paths)}",
                    fix="set its beta to 0 in the method's config",
                )
            module = backbone.get_submodule(paths[level])
            self._handles.append(module.register_forward_hook(self._record(level)))

    def _record(self, level: str) -> Any:
        channels_last = type(getattr(self.backbone, "net", None)).__name__ in CHANNELS_LAST

        def record(_module: nn.Module, _args: Any, out: Tensor) -> None:
            self._recorded[level] = out.permute(0, 3, 1, 2) if channels_last else out

        return record

    def take(self) -> dict[str, Tensor]:
        """{level: [B, C, H, W]} of the last forward pass; the maps are then released."""
        recorded, self._recorded = self._recorded, {}
        return recorded

    def remove(self) -> None:
        """Removes the hooks from the backbone."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def widths(self) -> dict[str, int]:
        """{level: number of channels of its patch embedding}, from a forward pass on an image."""
        was_training = self.backbone.training
        self.backbone.eval()
        self.backbone(torch.linspace(-1, 1, 3 * TEST_PX**2).view(1, 3, TEST_PX, TEST_PX))
        self.backbone.train(was_training)
        return {k: int(v.shape[1]) for k, v in self.take().items()}


def embedding_paths(backbone: nn.Module) -> dict[str, str]:
    """{level: module path of its patch embedding}; raises KdepError if they are not known."""
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

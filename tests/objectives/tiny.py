"""Helpers: a student, a teacher and images so small that every method trains in a second."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.networks.attention import Attention, Block
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze

PX = 32  # side of an image in pixels
LATENTS = 4  # random numbers per image that determine its pixels and its label
CLASSES, VIEWS = 3, 2  # label classes, views per image
DS, DT, LOGITS = 16, 24, 5  # feature widths of student (DS) and teacher (DT), teacher logits
CHANNELS, STRIDES = (6, 8, 12, DS), (2, 4, 8, 16)  # of the student's four feature maps
STUDENT: dict[str, Any] = dict(
    name="tiny",
    backbone=dict(type=f"{__name__}.TinyNet"),
    width=DS,
    input_px=PX,
    tap="act",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=CHANNELS, strides=STRIDES),
)
LARGER: dict[str, Any] = dict(  # a student config of a wider network
    name="tiny_wide",
    backbone=dict(type=f"{__name__}.TinyNet", channels=(8, 12, 16, 20)),
    width=20,
    input_px=PX,
    tap="act",
)
TEACHER: dict[str, Any] = dict(type=f"{__name__}.TinyTeacher", name="tiny_teacher")


class TinyNet(BaseModule):
    """Four strided convolutions with BatchNorm, with the interface of an OpenMMLab backbone."""

    def __init__(
        self,
        out_indices: Sequence[int] = (3,),
        channels: Sequence[int] = CHANNELS,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        widths = (3, *channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False)
            for c_in, c_out in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.act, self.out_indices = nn.ReLU(), tuple(out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of the levels in `out_indices`."""
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x))
            # `act` is the tap (the layer whose input and output are the student's feature), so
            # only the last activation may go through it.
            x = self.act(x) if len(maps) == 3 else F.relu(x)
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)


def patterns() -> Tensor:
    """[LATENTS, 1, PX, PX]: sine waves, orthogonal to each other and to a constant image."""
    phase = 2 * torch.pi * (torch.arange(PX) + 0.5) / PX
    sin, cos, ones = phase.sin(), phase.cos(), torch.ones(PX)
    rows_and_columns = [(sin, ones), (ones, sin), (sin, cos), (cos, ones)]
    return torch.stack([torch.outer(a, b) for a, b in rows_and_columns])[:, None]


@cache
def batch(count: int, seed: int) -> dict[str, Tensor]:
    """Images [count, 3, PX, PX] uint8, labels [count] and rows [count] of `count` views.

    An image is a sum of `patterns()` weighted by its random latents; a view adds noise to the
    latents and to the pixels. The label is the largest of CLASSES linear functions of the latents.
    """
    generator = torch.Generator().manual_seed(seed)
    per_image = torch.randn(count // VIEWS, LATENTS, generator=generator)
    latents = per_image.repeat_interleave(VIEWS, 0)
    latents = latents + 0.2 * torch.randn(latents.shape, generator=generator)
    pixels = torch.einsum("bk,kchw->bchw", latents, patterns()).expand(-1, 3, -1, -1)
    noise = torch.randn(pixels.shape, generator=generator)
    images = (128 + 25 * pixels + 15 * noise).clamp(0, 255).to(torch.uint8)
    # One classifier for all batches, so its seed is fixed.
    classifier = torch.randn(LATENTS, CLASSES, generator=torch.Generator().manual_seed(99))
    labels = (latents @ classifier).argmax(1)
    return {"images": images, "labels": labels, "rows": torch.arange(count)}


class TinyTeacher(Teacher):
    """A fixed random network that computes the latents from the pixels and its outputs from these.

    Attributes:
        shuffle_generator: if set, a generator that permutes the outputs within the batch, so that
            they belong to other images.
    """

    input_px, has_logits = PX, True
    tap = "no real layer"
    map_names = ("last", "s4", "s8", "s16")
    tails = ("s8", "s16")  # maps that `tail` accepts
    layers = ("s4", "s8", "s16")  # maps that `layer_module` accepts
    shuffle_generator: ClassVar[torch.Generator | None] = None

    def __init__(self, name: str, width: int = DT, logits: int = LOGITS, seed: int = 42) -> None:
        super().__init__((128.0,) * 3, (25.0,) * 3)
        self.name, self.width = name, width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(LATENTS, 32), nn.Linear(32, width)
            self.classifier = nn.Linear(width, logits)
            self.local = nn.Conv2d(LATENTS, 10, 1)
            # The maps pass through these, so that hooks can read them like a layer's output.
            self.post_activation = nn.ModuleDict({name: nn.Identity() for name in self.layers})
            self.logits = logits
            for layer in (self.first, self.second, self.classifier, self.local):
                nn.init.normal_(layer.weight, std=1.5 / layer.weight[0].numel() ** 0.5)
            with torch.no_grad():
                self.classifier.weight.mul_(2)
                self.classifier.bias.mul_(2)
            self.stem = nn.Conv2d(3, 4, 3, 2, 1)  # not run; for objectives that read a first layer
        freeze(self)

    @property
    def logit_head(self) -> nn.Module:
        """The linear layer from the pooled feature to the logits."""
        return self.classifier

    def layer_module(self, layer: str) -> nn.Module:
        """The module whose output is the map `layer`."""
        return self.post_activation[layer] if layer in self.layers else super().layer_module(layer)

    def tail(self, level: str) -> nn.Module:
        """New random layers from the map `level` to logits, other ones than the teacher's."""
        if level not in self.tails:
            return super().tail(level)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, self.logits))

    def with_attention(self, images: Tensor, blocks: Sequence[int]) -> TeacherOutput:
        """Outputs with attention of two heads, as of a transformer without class token.

        The tokens are the positions of the map s8. Queries, keys and values are the same tokens
        with their channels shifted by a number that depends on the block.
        """
        out = self(images)
        tokens = out.maps["s8"].flatten(2).transpose(1, 2)
        heads = tokens.unflatten(2, (2, -1)).transpose(1, 2)
        recorded = {}
        for block in blocks:
            queries, keys, values = (heads.roll(block + k, 3) for k in range(3))
            recorded[block] = Block(tokens.roll(block, 2), queries, keys, values)
        return replace(out, attention=Attention(tokens, recorded, tokens, 0))

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """Pooled feature, logits and maps; see the class."""
        patterns_LHW = patterns()[:, 0].to(x_B3HW.device)
        pattern_maps = x_B3HW.mean(1, keepdim=True) * patterns_LHW  # [B, L, H, W]
        # The patterns are orthogonal, so a projection on each gives back the latents.
        latents = pattern_maps.mean((2, 3)) / patterns_LHW.square().mean((1, 2))
        pooled = self.second(torch.tanh(self.first(latents))).relu() * 2
        order = torch.arange(len(pooled), device=pooled.device)
        if self.shuffle_generator is not None:
            order = torch.randperm(len(pooled), generator=self.shuffle_generator)
        maps = {
            f"s{stride}": self.post_activation[f"s{stride}"](
                torch.tanh(2 * self.local(F.adaptive_avg_pool2d(pattern_maps, PX // stride)))[order]
            )
            for stride in (4, 8, 16)
        }
        pooled = pooled[order]
        return TeacherOutput(pooled, self.classifier(pooled), {"last": maps["s16"], **maps})

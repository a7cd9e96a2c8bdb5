"""EfficientNet-Lite with fewer channels or blocks, and weights copied from the complete network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import efficientnet
from torch import Tensor, nn

from kdep_bench.bounds import LiteVariant, Positive
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.students.efficientnet_lite import EfficientNetLite
from kdep_bench.teachers.efficientnet_lite import timm_state

# variant -> (channel, depth) multiplier of Lite0's numbers, from the documentation of timm's
# `_gen_efficientnet_lite`.
_COMPLETE = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}


class SlimLite(EfficientNetLite):
    """EfficientNet-Lite`variant` with fewer channels or blocks.

    Args:
        channel_multiplier: at most 1. The channels of every stage are multiplied by it and rounded
            to multiples of 8; the stem keeps 32 channels, and the last 1x1 convolution 1280.
        depth_multiplier: at most 1. The number of blocks of a stage is multiplied by it and rounded
            up; the first and the last stage have one block. With both multipliers 1, the network is
            EfficientNet-Lite`variant`.
        copied: whether the initial weights are those of the supervised ImageNet network: of every
            stage the first block and evenly spaced others, of every tensor the leading channels.
            The student's config must then have card=dict(labels_used=True).
        variant: 0, 1 or 2.
        args: arguments of EfficientNetLite.

    Raises:
        KdepError: an unknown variant, or a multiplier that is not above 0 or is above 1 (the
            network would be larger than the one that is copied).
    """

    def __init__(
        self,
        channel_multiplier: Positive = 1.0,
        depth_multiplier: Positive = 1.0,
        copied: bool = False,
        variant: LiteVariant = 0,
        **args: Any,
    ) -> None:
        for name, value in (("channel", channel_multiplier), ("depth", depth_multiplier)):
            if not 0 < value <= 1:
                raise KdepError(
                    f"the student has {name}_multiplier = {value:g}",
                    expected="above 0 and at most 1",
                    fix="correct the student's `backbone`",
                )
        if type(variant) is not int or variant not in _COMPLETE:
            raise unknown_name("variant of SlimLite", str(variant), map(str, _COMPLETE))
        channels, depth = _COMPLETE[variant]
        self._multipliers = channels * float(channel_multiplier), depth * float(depth_multiplier)
        self.copied, self.variant = copied, variant
        super().__init__(variant=variant, **args)

    def _make_network(self, variant: int, output_stride: int) -> nn.Module:
        channels, depth = self._multipliers
        # A private function of timm (the version is pinned): the public ones fix both multipliers.
        return efficientnet._gen_efficientnet_lite(
            f"tf_efficientnet_lite{variant}",
            channel_multiplier=channels,
            depth_multiplier=depth,
            output_stride=output_stride,
            num_classes=0,
            pad_type="same",
            bn_eps=1e-3,
        )

    def init_weights(self) -> None:
        """Loads the weights of `init_cfg` if there is one; otherwise copies them if `copied`.

        Otherwise the weights stay timm's random initialisation.
        """
        if self.init_cfg:
            super().init_weights()
        elif self.copied:
            state = copied_state(self.state_dict(), timm_state(self.variant))
            self.load_state_dict(state, strict=True)


def copied_state(
    slim_state: Mapping[str, Tensor], full_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors with the names and shapes of `slim_state` and the values of the complete network's.

    Raises:
        KdepError: a tensor of `slim_state` is missing from `full_state`, or is larger than the one
            there.
    """
    depth, full_depth = _blocks(slim_state), _blocks(full_state)
    state = {}
    for name, tensor in slim_state.items():
        source = _source_name(name, depth, full_depth)
        stored = full_state.get(source)
        too_large = stored is not None and any(
            a > b for a, b in zip(tensor.shape, stored.shape, strict=True)
        )
        if stored is None or too_large:
            raise KdepError(
                f"the weights of {name} cannot be copied from {source} of the complete network",
                fix="set copied=False in the student's `backbone`, or lower its multipliers",
            )
        leading = tuple(slice(n) for n in tensor.shape)
        state[name] = stored[leading].to(tensor.dtype).clone()
    return state


def _blocks(state: Mapping[str, Tensor]) -> dict[int, int]:
    """Stage -> number of its blocks, from the names 'blocks.<stage>.<block>....'."""
    counts: dict[int, int] = {}
    for name in state:
        if name.startswith("blocks."):
            _, stage, block, *_ = name.split(".")
            counts[int(stage)] = max(counts.get(int(stage), 0), int(block) + 1)
    return counts


def _source_name(name: str, depth: Mapping[int, int], full_depth: Mapping[int, int]) -> str:
    """The name of the tensor of the complete network that is copied to `name`."""
    if not name.startswith("blocks."):
        return name
    _, stage, block, rest = name.split(".", 3)
    n, n_full = depth[int(stage)], full_depth.get(int(stage), 0)
    # The first block and, evenly spaced, the others; the last one if there are two or more.
    source = 0 if n == 1 else round(int(block) * (n_full - 1) / (n - 1))
    return f"blocks.{stage}.{source}.{rest}"

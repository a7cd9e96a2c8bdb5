"""EfficientNet-Lite with fewer channels or blocks, and weights copied from the complete network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import efficientnet
from torch import Tensor, nn

from kdep_bench.bounds import Positive
from kdep_bench.errors import KdepError
from kdep_bench.students.efficientnet_lite import EfficientNetLite
from kdep_bench.teachers.efficientnet_lite import timm_state


class SlimLite(EfficientNetLite):
    """EfficientNet-Lite`variant` with scaled width and depth.

    Args:
        channel_multiplier: all numbers of channels but the stem's are multiplied by it and rounded
            to multiples of 8, at most 1.
        depth_multiplier: the number of blocks of a stage is multiplied by it and rounded up; the
            first and the last stage have one block.
        copied: whether the initial weights are those of the supervised ImageNet network: of every
            stage the first block and evenly spaced others, of every tensor the leading channels.
            The student's config must then have card=dict(labels_used=True).
        args: arguments of EfficientNetLite.

    Raises:
        KdepError: a multiplier above 1, which leaves nothing to copy.
    """

    def __init__(
        self,
        channel_multiplier: Positive = 1.0,
        depth_multiplier: Positive = 1.0,
        copied: bool = False,
        variant: int = 0,
        **args: Any,
    ) -> None:
        for name, value in (("channel", channel_multiplier), ("depth", depth_multiplier)):
            if not 0 < value <= 1:
                raise KdepError(
                    f"the student has {name}_multiplier = {value:g}",
                    expected="above 0 and at most 1",
                    fix="correct the student's `backbone`",
                )
        self._multipliers = float(channel_multiplier), float(depth_multiplier)
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
        """Copies the weights, if `copied`; timm has initialised the others."""
        if self.init_cfg:
            super().init_weights()
        elif self.copied:
            state = copied_state(self.state_dict(), timm_state(self.variant))
            self.load_state_dict(state, strict=True)


def copied_state(
    slim_state: Mapping[str, Tensor], full_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors with the names and shapes of `slim_state` and values of the complete network's.

    Raises:
        KdepError: a tensor of `slim_state` is not in `full_state`, or is larger there.
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

"""TinyViT as a family of students for searches and contractions. Imports no torch."""

from __future__ import annotations

import math

from kdep_bench.bounds import Count, Positive
from kdep_bench.students.space import TIMM, Family, Json, Size


class TinyVitFamily(Family):
    """timm's TinyViT (Wu et al., ECCV 2022) with variable depth, width, windows and expansion.

    Stage 1 has inverted bottlenecks (MBConv), stages 2 to 4 have attention within windows, a
    depthwise 3x3 convolution and an MLP. The defaults are TinyViT-11M, except the windows, which
    fit 64 pixels: a map that is no multiple of its window is padded, which costs FLOPs.

    Args:
        input_px: side of the images in pixels.
        heads1, heads2, heads3, heads4: channels of the stages at strides 4, 8, 16 and 32, divided
            by `head`; the number of attention heads in stages 2 to 4.
        depth1, depth2, depth3, depth4: blocks of the stages.
        window2, window3, window4: sides of the attention windows, in positions.
        expansion: channels inside an MBConv divided by those of its input.
        mlp_ratio: channels inside an MLP divided by those of its input.
        head: channels of an attention head.
    """

    def __init__(
        self,
        input_px: Count,
        heads1: Count = 2,
        heads2: Count = 4,
        heads3: Count = 8,
        heads4: Count = 14,
        depth1: Count = 2,
        depth2: Count = 2,
        depth3: Count = 6,
        depth4: Count = 2,
        window2: Count = 8,
        window3: Count = 4,
        window4: Count = 2,
        expansion: Positive = 4.0,
        mlp_ratio: Positive = 4.0,
        head: Count = 32,
    ) -> None:
        self.px = input_px
        self.heads = (heads1, heads2, heads3, heads4)
        self.depths = (depth1, depth2, depth3, depth4)
        self.windows = (window2, window2, window3, window4)  # stage 1 has no windows
        self.expansion, self.mlp_ratio = float(expansion), float(mlp_ratio)
        self.head = head
        self.channels = [head * count for count in self.heads]

    def student(self) -> Json:
        ratios = f"e{self.expansion:g}_m{self.mlp_ratio:g}".replace(".", "p")
        numbers = [*self.heads, *self.depths, *self.windows[1:], self.head]
        return {
            "name": f"tinyvit_{'_'.join(map(str, numbers))}_{ratios}",
            "backbone": {
                "type": TIMM,
                "model": "tiny_vit_5m_224",
                "embed_dims": self.channels,
                "depths": list(self.depths),
                "num_heads": list(self.heads),
                "window_sizes": list(self.windows),
                "mbconv_expand_ratio": self.expansion,
                "mlp_ratio": self.mlp_ratio,
            },
            "width": self.channels[-1],
            "input_px": self.px,
            "tap": "output",
            "pyramid": {
                "out_indices": [0, 1, 2, 3],
                "channels": self.channels,
                "strides": [4, 8, 16, 32],
            },
            "dilated": None,
        }

    def size(self) -> Size:
        params = flops = 0

        def conv(
            channels_in: int, channels_out: int, kernel: int, side: int, groups: int = 1
        ) -> None:
            """Adds a convolution without bias, with output side `side`, and its BatchNorm."""
            nonlocal params, flops
            weights = channels_in // groups * channels_out * kernel**2
            params += weights + 2 * channels_out
            flops += 2 * weights * side**2

        def linear(channels_in: int, channels_out: int, positions: int) -> None:
            """Adds a linear layer with bias, applied to `positions` tokens."""
            nonlocal params, flops
            params += (channels_in + 1) * channels_out
            flops += 2 * channels_in * channels_out * positions

        first, side = self.channels[0], math.ceil(self.px / 2)
        conv(3, first // 2, 3, side)
        side = math.ceil(side / 2)
        conv(first // 2, first, 3, side)
        for _ in range(self.depths[0]):
            hidden = int(first * self.expansion)
            conv(first, hidden, 1, side)
            conv(hidden, hidden, 3, side, hidden)
            conv(hidden, first, 1, side)
        for stage in (1, 2, 3):
            width, window = self.channels[stage], self.windows[stage]
            conv(self.channels[stage - 1], width, 1, side)
            side = math.ceil(side / 2)
            conv(width, width, 3, side, width)
            conv(width, width, 1, side)
            padded = (window * math.ceil(side / window)) ** 2  # positions of the padded map
            for _ in range(self.depths[stage]):
                params += 2 * 2 * width  # two LayerNorms
                params += self.heads[stage] * window**2  # biases of relative positions
                linear(width, 3 * width, padded)
                flops += 2 * 2 * padded * window**2 * width  # scores, and their product with values
                linear(width, width, padded)
                conv(width, width, 3, side, width)
                hidden = int(width * self.mlp_ratio)
                linear(width, hidden, side**2)
                linear(hidden, width, side**2)
        params += 2 * self.channels[-1]  # LayerNorm of the mean, the classifier's input
        return Size(params, flops)

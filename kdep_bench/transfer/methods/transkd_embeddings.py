"""Two parts of TransKD (`transkd.py`) that change the student's patch embeddings.

The changed embeddings are compared with the teacher's.

* GL-Mixer, on the deepest level: E -> a A(E) + c (conv(E) * sigmoid(conv'(E))), with the
  self-attention A over all positions, two convolutions of three neighbouring tokens in row order,
  and two learned weights a and c.
* Embedding assistants, on every level with a beta above 0: W E -> w W E + v P(F), with a new patch
  embedding P that reads the student's map F of the next finer level (the image at the finest level)
  and has the teacher's number of channels, and two learned weights w and v.

Source: Liu et al., arXiv 2202.13393; RuipingL/TransKD `train/CSF_GLMixer.py` and
`train/CSF_EA.py`. w and v start at 0.1 (i + 1) and 0.1 (i + 1 + n) at level i of 0..n - 1. The
authors leave a and c uninitialised; here both start at 0.5. Their newer `train/TransKD.py` never
runs its embedding assistants: an earlier branch for the same version returns the plain embeddings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.networks.resize import resize_map

HEADS = 8  # attention heads of the authors' GL-Mixer


class GlobalLocalMixer(nn.Module):
    """GL-Mixer; see the top of this module.

    Args:
        channels: number of channels of the patch embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, HEADS)  # a number of heads that divides the channels
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.values = nn.Conv1d(channels, channels, 3, padding=1)
        self.gates = nn.Conv1d(channels, channels, 3, padding=1)
        self.weights = nn.Parameter(torch.full((2,), 0.5))  # of attention and of convolutions

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]"""
        x_BCN = x_BCHW.flatten(2)
        local = self.values(x_BCN) * self.gates(x_BCN).sigmoid()
        mixed = self.weights[0] * self.attention(x_BCN) + self.weights[1] * local
        return mixed.view_as(x_BCHW)

    def attention(self, x_BCN: Tensor) -> Tensor:
        """Self-attention over the N positions."""
        qkv = self.qkv(x_BCN.transpose(1, 2)).unflatten(2, (3, self.heads, -1))
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(out.transpose(1, 2).flatten(2)).transpose(1, 2)


class EmbeddingAssistant(nn.Module):
    """The embedding assistant of one level; see the top of this module.

    Args:
        in_channels: channels of the map that it reads, of the next finer level; 3 for the image.
        out_channels: the teacher's number of channels.
        stride: side of that map divided by the side of this level's map.
        level: number of the level, from 0 for the finest.
        levels: number of levels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, level: int, levels: int
    ) -> None:
        super().__init__()
        # The authors' sizes: 7 for the stride 4, 3 for the stride 2.
        kernel = 2 * stride - 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(out_channels)
        weights = [0.1 * (level + 1), 0.1 * (level + 1 + levels)]
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, embedding: Tensor, finer: Tensor) -> Tensor:
        """The weighted sum.

        Args:
            embedding: [B, out_channels, H, W], the projected patch embedding of the student.
            finer: [B, in_channels, H', W'], the map of the next finer level, or the image.
        """
        new = self.norm(self.conv(finer).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        new = resize_map(new, (embedding.shape[2], embedding.shape[3]))
        return self.weights[0] * embedding + self.weights[1] * new

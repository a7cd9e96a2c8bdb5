"""Teacher maps stored in a cache as int8, with one float16 scale per view and channel.

code = round(map / scale) with scale = max |map| / 127 over the positions of one channel in one
view, so that the rounding error is at most scale / 2 = max |map| / 254, except for a channel whose
scale would be below MIN_SCALE. In maps before an
activation, a few channels have values a hundred times as large as the others. A common scale would
round the other channels to zero, so there is one scale per channel. A channel of H x W positions
takes H W + 2 bytes instead of 2 H W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The stored arrays are named "int8_maps.<map>" and "int8_scales.<map>".
CODES, SCALES = "int8_maps", "int8_scales"
MAX_CODE = 127  # the largest int8; -128 is not used, so codes are symmetric
# The smallest scale, also of a channel of zeros. Numbers below it are subnormal in float16, which
# are less precise.
MIN_SCALE = float(np.finfo(np.float16).smallest_normal)
# Limit of the cache check: |stored - computed map| / largest magnitude of all channels. It is about
# twice the largest rounding error of a channel, 1/254.
TOLERANCE = 2.0**-7
MAX_VALUE = float(np.finfo(np.float16).max)  # the maps are read as float16


def quantise(map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [B, C, H, W] int8, scales [B, C] float16) of the maps of B views.

    A value that is not finite, or beyond float16, gives a scale that is not finite.
    """
    largest = map_BCHW.float().abs().amax((2, 3))
    scale = torch.where(largest <= MAX_VALUE, largest / MAX_CODE, torch.inf)
    scale = scale.clamp(min=MIN_SCALE).half()
    codes = (map_BCHW.float() / scale.float()[:, :, None, None]).round().nan_to_num(0.0)
    return codes.clamp(-MAX_CODE, MAX_CODE).to(torch.int8), scale


@dataclass(frozen=True)
class Int8Shard:
    """A shard of quantised maps that is indexed like the float16 array [rows, C, H, W].

    Attributes:
        codes: [rows, C, H, W] int8.
        scales: [rows, C] float16.
    """

    codes: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, C, H, W)."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers that are returned."""
        return np.dtype(np.float16)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The maps [len(rows), C, H, W] float16 of the row numbers `rows`."""
        scales = self.scales[rows].astype(np.float32)[:, :, None, None]
        return (self.codes[rows] * scales).astype(np.float16)

"""Weights and activations with few bits in training (fake quantisation) and bit widths per layer.

Values are rounded to at most 2^k levels (k bits) but stored as floats. Gradients pass through the
rounding unchanged (straight-through estimator). Sources: weights as in DoReFa-Net (Zhou et al.,
arXiv 1606.06160) and icey-zhang/GHOST models/quant_modules_dorefa.py; bit widths from clusters of
the weights as in icey-zhang/GHOST quantization_conv_automix_autodis.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.ao.quantization import MovingAverageMinMaxObserver

FLOAT_BITS = 32  # bits of a value that is not quantised
MAX_BITS = 8  # largest number of bits of a quantised value
SAMPLE = 4096  # largest number of weights of a layer that are clustered


def dorefa_weight(weight: Tensor, bits: int) -> Tensor:
    """The weights with `bits` bits: m * (2 * round(n * u) / n - 1), n = 2^bits - 1.

    u = tanh(w) / (2 m) + 1/2 and m = max |tanh(w)|, without gradient through m. The authors leave
    the factor m out, because a BatchNorm follows each of their layers.
    """
    if bits == FLOAT_BITS:
        return weight
    steps = 2**bits - 1
    squashed = torch.tanh(weight)
    largest = squashed.detach().abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    scaled = (squashed / (2 * largest) + 0.5) * steps
    rounded = scaled + (scaled.round() - scaled).detach()
    return largest * (2 * rounded / steps - 1)


def cluster_distance(weight: Tensor, bits: int) -> float:
    """Mean squared distance of the weights to the nearest of 2^bits k-means centres.

    Of more than SAMPLE weights, SAMPLE evenly spaced ones in ascending order are clustered (the
    authors cluster all). The first centres are quantiles, so that the result is not random.
    """
    from sklearn.cluster import KMeans

    values = np.sort(weight.detach().double().cpu().numpy().ravel())
    if len(values) > SAMPLE:
        values = values[((np.arange(SAMPLE) + 0.5) * len(values) / SAMPLE).astype(int)]
    centres = min(2**bits, len(np.unique(values)))
    quantiles = np.quantile(np.unique(values), (np.arange(centres) + 0.5) / centres)
    start: Any = {"init": quantiles[:, None], "n_init": 1}  # not in scikit-learn's annotations
    fitted = KMeans(centres, max_iter=50, **start).fit(values[:, None])
    return -float(fitted.score(values[:, None])) / len(values)


def hybrid_bits(weight: Tensor, threshold: float, smallest: int, largest: int) -> int:
    """The fewest bits k of 2..8 with 10^6 * cluster distance < threshold, 8 if there is none.

    The result is limited to smallest..largest.
    """
    bits = next(
        (k for k in range(2, MAX_BITS) if 1e6 * cluster_distance(weight, k) < threshold), MAX_BITS
    )
    return min(max(bits, smallest), largest)


class ActivationRange(nn.Module):
    """Quantises activations to 2^bits levels between a running minimum and maximum.

    The range always includes 0. It is updated in training, with the values of all processes
    (ranks), by torch's MovingAverageMinMaxObserver. Gradients are those of
    `torch.fake_quantize_per_tensor_affine`: 1 within the range, 0 outside.

    Args:
        bits: number of bits, at most 8.
        averaging: weight of a batch's minimum and maximum in the running ones.
    """

    def __init__(self, bits: int, averaging: float = 0.1) -> None:
        super().__init__()
        self.bits = bits
        self.observer = MovingAverageMinMaxObserver(
            averaging_constant=averaging,
            dtype=torch.quint8,
            qscheme=torch.per_tensor_affine,
            quant_min=0,
            quant_max=2**bits - 1,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.observer(_extremes(x))
        return quantised(x, *self.scale_and_zero(), self.bits)

    def scale_and_zero(self) -> tuple[float, int]:
        """(scale, zero point): x is rounded to scale * (integer - zero point)."""
        scale, zero_point = self.observer.calculate_qparams()
        return float(scale), int(zero_point)


@torch.no_grad()
def _extremes(x: Tensor) -> Tensor:
    """[minimum, maximum] of `x` over all ranks."""
    negative_low, high = -x.detach().min().float(), x.detach().max().float()
    both = torch.stack([negative_low, high])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(both, dist.ReduceOp.MAX)
    return both * both.new_tensor([-1.0, 1.0])


def quantised(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """`x` rounded to scale * (q - zero_point), for integers q of 0..2^bits - 1."""
    rounded = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, 2**bits - 1)
    return rounded.to(x.dtype)

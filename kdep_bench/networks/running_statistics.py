"""Forward passes in training mode that leave the running statistics of BatchNorm as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def unchanged_running_statistics(net: nn.Module) -> Iterator[None]:
    """Context in which BatchNorm layers of `net` do not update their running statistics.

    For passes on images that the network is not evaluated on (masked or generated images). Layers
    in training mode normalise by the statistics of the batch, as before, and gradients are the
    same; layers in evaluation mode normalise by their running statistics.
    """
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True

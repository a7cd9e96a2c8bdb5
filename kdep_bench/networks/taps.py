"""Records inputs and outputs of modules, and finds a network's last activation by running it.

KDEP reads the pooled feature before the last ReLU, of teacher and student (He et al., CVPR 2022;
CVMI-Lab/KDEP src/resnet.py, src/mobilenet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Side = Literal["in", "out"]


def global_mean(x_BCHW: Tensor) -> Tensor:
    """Global average pooling: [B, C, H, W] -> [B, C]."""
    return x_BCHW.mean((2, 3))


@contextmanager
def capture_modules(
    net: nn.Module, points: Mapping[str, tuple[str, Side]]
) -> Iterator[dict[str, Any]]:
    """Context manager: records inputs or outputs of submodules during forward passes.

    Args:
        net: any network.
        points: {name: (module path, "in" for the first argument or "out" for the result)}.

    Yields:
        {name: recorded value}, filled by each forward pass. If a module runs several times in a
        pass (the ReLU of a ResNet block), the value of its last call is kept.
    """
    recorded: dict[str, Any] = {}
    handles = []

    def recorder(name: str, side: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            recorded[name] = args[0] if side == "in" else out

        return hook

    try:
        for name, (path, side) in points.items():
            handles.append(net.get_submodule(path).register_forward_hook(recorder(name, side)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def nonzero_scales(net: nn.Module) -> Iterator[None]:
    """Context manager: fills every `weight` that has only zeros with ones; afterwards with zeros.

    These are norms of residual branches. With zeros, a residual block is the identity, and the
    activation of an earlier block could be taken for the last one.
    """
    weights = [getattr(m, "weight", None) for m in net.modules()]
    zeros = [w for w in weights if isinstance(w, Tensor) and not w.is_meta and not bool(w.any())]
    with torch.no_grad():
        for weight in zeros:
            weight.fill_(1.0)
        try:
            yield
        finally:
            for weight in zeros:
                weight.zero_()


@torch.no_grad()
def find_last_activation(net: nn.Module, forward: Callable[[], Tensor]) -> str | None:
    """The module path of the activation whose output is the network's final map, or None.

    An activation is a module without parameters, buffers and children, whose output has the shape
    of its input but other values. Its output must equal the final map exactly. If several modules
    qualify, the one that ran last is returned. Its `inplace` stays False, so that its input can be
    recorded.

    Args:
        net: the network, in eval mode.
        forward: function that runs `net` on noise and returns its final map.
    """
    leaves = {
        path: module
        for path, module in net.named_modules()
        if not [*module.children(), *module.parameters(), *module.buffers()]
    }
    inplace = [m for m in leaves.values() if getattr(m, "inplace", False)]
    calls: dict[str, tuple[int, Tensor, Tensor]] = {}
    handles = []

    def recorder(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                calls[path] = (len(order), args[0], out)
                order.append(path)

        return hook

    order: list[str] = []
    last: str | None = None
    try:
        for module in inplace:
            module.inplace = False  # type: ignore[assignment]
        handles = [m.register_forward_hook(recorder(p)) for p, m in leaves.items()]
        with nonzero_scales(net):
            final = forward()
        candidates = [
            (number, path)
            for path, (number, before, after) in calls.items()
            if after.shape == final.shape == before.shape
            and torch.equal(after, final)
            and not torch.equal(before, after)
        ]
        last = max(candidates)[1] if candidates else None
    finally:
        for handle in handles:
            handle.remove()
        for module in inplace:  # becomes True again, except for the module that was found
            module.inplace = last is None or module is not leaves[last]  # type: ignore[assignment]
    return last


def is_rectified(last_BCHW: Tensor, read_BD: Tensor) -> bool:
    """Whether a ReLU is applied to a network's last map without being a module.

    This is the case if the map has exact zeros and no negative values (after a functional ReLU), or
    if the input of the classifier is the mean of the rectified map (DenseNet).

    Args:
        last_BCHW: the last map.
        read_BD: the input of the classifier.
    """
    if bool((last_BCHW >= 0).all()) and bool((last_BCHW == 0).any()):
        return True
    if last_BCHW.shape[1] != read_BD.shape[1] or bool((last_BCHW >= 0).all()):
        return False
    return torch.allclose(global_mean(last_BCHW.relu()), read_BD, rtol=1e-4, atol=1e-6)

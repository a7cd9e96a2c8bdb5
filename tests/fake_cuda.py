"""A GPU that is not there: torch's FakeTensorMode keeps devices and shapes, and computes nothing.

Tensors of two devices in one operation raise as on a GPU, where a CPU of real tensors shows
nothing; a tensor that was left out of a module's parameters and buffers raises too, and so does a
value that is asked for (`item`, a boolean index), for which a GPU would have to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses import FakeTensorMode


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module._apply without swap_tensors, which fake tensors do not bear."""
    for child in module.children():
        _apply(child, fn)
    for name, p in module._parameters.items():
        if p is not None:
            module._parameters[name] = nn.Parameter(fn(p.detach()), p.requires_grad)
    for name, b in module._buffers.items():
        if b is not None:
            module._buffers[name] = fn(b)
    return module


@contextmanager
def fake_cuda(*modules: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """Fakes of the modules, still on the CPU, in place; gives a function that fakes batches."""
    mode, real = FakeTensorMode(), nn.Module._apply
    nn.Module._apply = _apply  # type: ignore[method-assign, assignment]
    try:
        for module in modules:
            _apply(module, mode.from_tensor)

        def fake(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: fake(v) for k, v in value.items()}
            return mode.from_tensor(value) if isinstance(value, Tensor) else value

        with mode:
            yield fake
    finally:
        nn.Module._apply = real

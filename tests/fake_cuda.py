"""A fake GPU: torch's FakeTensorMode tracks devices and shapes, and computes nothing.

It raises an error for these faults, which a test on a CPU would not find:

- an operation on tensors of two devices
- a module's tensor that is neither a parameter nor a buffer, so it does not move to the GPU
- reading a value (`item`, a boolean index), for which the program would wait for the GPU
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses import FakeTensorMode


def apply_without_swapping(
    module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """Module._apply without swap_tensors, which fake tensors do not support."""
    for child in module.children():
        apply_without_swapping(child, fn)
    for name, p in module._parameters.items():
        if p is not None:
            module._parameters[name] = nn.Parameter(fn(p.detach()), p.requires_grad)
    for name, b in module._buffers.items():
        if b is not None:
            module._buffers[name] = fn(b)
    return module


@contextmanager
def fake_cuda(*modules: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """Makes the modules' tensors fake; yields a function that does the same to a batch.

    The fake tensors have the device 'cpu' until the test moves them to 'cuda'.
    """
    mode, original = FakeTensorMode(), nn.Module._apply
    nn.Module._apply = apply_without_swapping  # type: ignore[method-assign, assignment]
    try:
        for module in modules:
            apply_without_swapping(module, mode.from_tensor)

        def fake(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: fake(v) for k, v in value.items()}
            return mode.from_tensor(value) if isinstance(value, Tensor) else value

        with mode:
            yield fake
    finally:
        nn.Module._apply = original

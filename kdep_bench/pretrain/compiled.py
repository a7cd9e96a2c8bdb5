"""Compiles the student with torch.compile and checks it against the eager student.

Off by default: it needs a compiler, takes about a minute, and its speedup depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError

# Largest permitted difference, relative to each tensor's largest value. Compiled kernels sum in
# another order and round less often; the error of a wrong kernel is of the order of 1.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

Pair = tuple[Tensor, Tensor]  # (before, after): last maps before and after the last activation


def compiled(tap: nn.Module, backend: str, x: Tensor) -> Callable[[Tensor], Pair]:
    """The compiled `tap`, after a check on a batch of images.

    Both outputs and the gradients of all parameters are compared with those of the eager network,
    in training mode. BatchNorm statistics are restored.

    Args:
        tap: a PreActivationTap.
        backend: back end of torch.compile.
        x: normalised images [B, 3, px, px]; the current autocast applies.

    Raises:
        KdepError: the network does not compile, or the results differ, as they do for a student
            with dropout or stochastic depth.
    """
    buffers = {k: v.clone() for k, v in tap.named_buffers()}
    weights = [p for p in tap.parameters() if p.requires_grad]

    def outputs_and_gradients(network: Callable[[Tensor], Pair]) -> list[Tensor]:
        before, after = network(x)
        total = before.float().square().mean() + after.float().mean()
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        with torch.no_grad():
            for name, value in tap.named_buffers():
                value.copy_(buffers[name])
        return [before.detach(), after.detach(), *(g for g in grads if g is not None)]

    expected = outputs_and_gradients(tap)
    try:
        compiled_tap: Any = torch.compile(tap, backend=backend)
        actual = outputs_and_gradients(compiled_tap)
    except KdepError:
        raise
    except Exception as e:  # the back ends raise exceptions of many types
        raise KdepError(
            f"torch.compile with back end {backend!r} fails on the student ({type(e).__name__}: "
            f"{' '.join(str(e).split())[:200]})",
            fix="remove budget.compile, or install a compiler that torch supports",
        ) from e
    limit = TOLERANCE.get(expected[0].dtype, TOLERANCE[torch.float32])
    largest = max(
        float((a.float() - b.float()).abs().max()) / max(float(a.float().abs().max()), 1e-6)
        for a, b in zip(expected, actual, strict=True)
    )
    if not largest <= limit:
        raise KdepError(
            f"the compiled student differs from the eager one by {largest:.2g} of its scale",
            expected=f"at most {limit:.2g}",
            fix="remove budget.compile",
        )
    return compiled_tap

"""torch.compile of the student, used only after it has shown that it computes what eager does.

Not the default: it takes a compiler and a minute, and what it gains on a machine is to be measured
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError

# Largest difference, relative to each tensor's largest value. Compiled kernels sum in another
# order and fuse roundings; a wrong kernel is off by the whole scale.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

Pair = tuple[Tensor, Tensor]


def compiled(tap: nn.Module, backend: str, x: Tensor) -> Callable[[Tensor], Pair]:
    """`tap` compiled, after a check on the batch `x` [B, 3, px, px] under the current autocast.

    Both taps and the gradients of all parameters are compared with eager's in training mode; the
    BatchNorm statistics are put back. Raises KdepError when it does not compile or differs. A
    student with random depth or dropout cannot be checked so, and differs.
    """
    buffers = {k: v.clone() for k, v in tap.named_buffers()}
    weights = [p for p in tap.parameters() if p.requires_grad]

    def once(run: Callable[[Tensor], Pair]) -> list[Tensor]:
        before, after = run(x)
        total = before.float().square().mean() + after.float().mean()
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        with torch.no_grad():
            for name, value in tap.named_buffers():
                value.copy_(buffers[name])
        return [before.detach(), after.detach(), *(g for g in grads if g is not None)]

    want = once(tap)
    try:
        fast: Any = torch.compile(tap, backend=backend)
        got = once(fast)
    except KdepError:
        raise
    except Exception as e:  # whatever a compiler back end raises
        raise KdepError(
            f"torch.compile with back end {backend!r} fails on the student ({type(e).__name__}: "
            f"{' '.join(str(e).split())[:200]})",
            fix="remove budget.compile, or install a compiler that torch supports",
        ) from e
    limit = TOLERANCE.get(want[0].dtype, TOLERANCE[torch.float32])
    worst = max(
        float((a.float() - b.float()).abs().max()) / max(float(a.float().abs().max()), 1e-6)
        for a, b in zip(want, got, strict=True)
    )
    if not worst <= limit:
        raise KdepError(
            f"the compiled student differs from the eager one by {worst:.2g} of its scale",
            expected=f"at most {limit:.2g}",
            fix="remove budget.compile",
        )
    return fast

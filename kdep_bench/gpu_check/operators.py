"""Check: results and gradients of mmcv's operators are the same as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdep_bench.gpu_check.base import Check, Measurements, Setting

TOLERANCE = 1e-4  # relative L2 difference; float32 sums in another order differ by less


def _run(setting: Setting, measurements: Measurements) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, (call, tensors) in _operators().items():
        results: list[list[Any]] = []
        for device in ("cpu", setting.device):
            inputs = [t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]
            outputs = call(*inputs)
            losses = [o.float().square().sum() for o in outputs if o.is_floating_point()]
            if any(t.requires_grad for t in inputs):
                torch.stack(losses).sum().backward()
            grads = [t.grad for t in inputs if t.grad is not None]
            results.append([x.detach().cpu() for x in (*outputs, *grads)])
        worst = max(_relative_difference(a, b) for a, b in zip(*results, strict=True))
        measurements.claim(
            f"{name}, forward and backward", worst <= TOLERANCE, worst, f"<= {TOLERANCE:g}"
        )


def _relative_difference(a: Any, b: Any) -> float:
    """Relative L2 difference; infinite for unequal shapes."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    return float((a - b).norm() / a.norm().clamp(min=1e-12))


def _operators() -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Name -> (function that returns a tuple of tensors, its arguments on the CPU)."""
    import torch
    from mmcv import ops

    generator = torch.Generator().manual_seed(0)  # for all random arguments below

    def rand(*shape: int, grad: bool = True, scale: float = 1.0) -> Any:
        return (scale * torch.randn(*shape, generator=generator)).requires_grad_(grad)

    corner = torch.rand(64, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(64, 2, generator=generator)], 1)
    scores = torch.rand(64, generator=generator)
    rois = torch.cat([torch.randint(0, 2, (16, 1), generator=generator).float(), boxes[:16]], 1)
    labels = torch.randint(0, 5, (32,), generator=generator)
    shapes = torch.tensor([[8, 8], [4, 4]])
    starts = torch.tensor([0, 64])
    mask = torch.rand(2, 9, 16, 16, generator=generator)

    def attention(value: Any, locations: Any, weight: Any) -> Any:
        function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
        device = value.device
        weight = weight.flatten(3).softmax(-1).view_as(weight)
        level_arguments = (shapes.to(device), starts.to(device))
        return (function.apply(value, *level_arguments, locations, weight, 64),)

    return {
        "nms": (lambda b, s: ops.nms(b, s, 0.5), [boxes, scores]),
        "soft_nms": (lambda b, s: ops.soft_nms(b, s, 0.5), [boxes, scores]),
        "bbox_overlaps": (lambda a, b: (ops.bbox_overlaps(a, b),), [boxes, boxes.flip(0)]),
        "roi_align": (
            lambda x, r: (ops.roi_align(x, r, 7, 0.25, 2, "avg", True),),
            [rand(2, 8, 16, 16), rois],
        ),
        "sigmoid_focal_loss": (
            lambda x, t: (ops.sigmoid_focal_loss(x, t, 2.0, 0.25, None, "none"),),
            [rand(32, 5), labels],
        ),
        "deform_conv2d": (
            lambda x, o, w: (ops.deform_conv2d(x, o, w, 1, 1),),
            [rand(2, 4, 16, 16), rand(2, 18, 16, 16, scale=0.5), rand(6, 4, 3, 3)],
        ),
        "modulated_deform_conv2d": (
            lambda x, o, m, w, b: (ops.modulated_deform_conv2d(x, o, m, w, b, 1, 1),),
            [
                rand(2, 4, 16, 16),
                rand(2, 18, 16, 16, scale=0.5),
                mask.requires_grad_(),
                rand(6, 4, 3, 3),
                rand(6),
            ],
        ),
        "multi_scale_deform_attn": (
            attention,
            [
                rand(2, 80, 4, 8),
                torch.rand(2, 10, 4, 2, 4, 2, generator=generator).requires_grad_(),
                rand(2, 10, 4, 2, 4),
            ],
        ),
    }


CHECK = Check("operators against the CPU", order=10, seconds=40, min_seconds=5, run=_run)

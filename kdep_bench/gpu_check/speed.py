"""Check: training speed of KDEP with a cache, KDEP with a live teacher, and supervised training.

Measures images per second for ResNet-18 and ViT-S at 224 px with a ResNet-50 teacher. The batch
stays on the device, so data loading is not included (see `ratios`). The report has an upper bound
for each: the speed if all FLOPs ran as fast as a large matrix product in the same number format.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kdep_bench.flops import FORWARD_AND_BACKWARD
from kdep_bench.gpu_check.base import Check, Json, Measurements, Setting


def _run(setting: Setting, measurements: Measurements) -> None:
    import torch

    from kdep_bench.devices import compute_device

    device, quick = compute_device(), setting.quick
    px, batch, steps = (64, 2, 1) if quick else (224, 256, 20)
    torch.backends.cudnn.benchmark = True
    throughput = _throughput(device, 256 if quick else 8192, torch.bfloat16)
    teacher = _channels_last(_resnet(50), device)
    teacher.eval()  # in a separate statement: `eval` of mmpretrain's networks returns None
    images = torch.randn(batch, 3, px, px, device=device).contiguous(
        memory_format=torch.channels_last
    )
    for name, student in (("ResNet-18", _resnet(18)), ("ViT-S", _vit(px))):
        for training, (loss, flops, optimizer) in _trainings(student, teacher, images).items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = _step_s(loss, optimizer, steps)
            label = f"{name} at {px} px, {training}"
            measurements.figure(label, batch / seconds, "images/s")
            bound = batch * throughput / flops
            measurements.figure(f"{label}: upper bound by its FLOPs", bound, "images/s")
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                measurements.figure(f"{label}: peak memory at batch {batch}", peak, "GiB")


def _trainings(
    student: Json, teacher: Any, images: Any
) -> dict[str, tuple[Callable[[], Any], float, Any]]:
    """Name -> (loss of a step on `images` [B, 3, px, px], FLOPs of a step, optimizer)."""
    import torch

    device, batch = images.device, len(images)
    net = _channels_last(student, device)
    net.train()
    head = torch.nn.Linear(student["width"], 1000).to(device)  # the classes of ImageNet-1k
    target = torch.randn(batch, student["width"], device=device)
    # The teacher has 2048 channels. 45 is about sqrt(2048), so that the products have variance 1.
    basis = torch.randn(2048, student["width"], device=device) / 45
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], 1e-3, momentum=0.9)

    def feature() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            out = net(images)
        last = out[-1] if isinstance(out, (tuple, list)) else out
        return (last.mean((2, 3)) if last.ndim == 4 else last).float()

    def cached() -> Any:
        return (feature() - target).square().mean()

    def live() -> Any:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            live_target = teacher(images)[-1].mean((2, 3)).float() @ basis
        return (feature() - live_target).square().mean()

    def supervised() -> Any:
        return torch.nn.functional.cross_entropy(head(feature()), labels)

    student_flops = FORWARD_AND_BACKWARD * _forward_flops(net, images)
    live_flops = student_flops + _forward_flops(teacher, images)
    return {
        "KDEP, cached": (cached, student_flops, optimizer),
        "KDEP, live teacher": (live, live_flops, optimizer),
        "supervised": (supervised, student_flops, optimizer),
    }


def _step_s(loss: Callable[[], Any], optimizer: Any, steps: int, warmup: int = 3) -> float:
    """Mean seconds of a training step over `steps` steps, after `warmup` unmeasured steps."""
    from kdep_bench.devices import synchronise

    start = 0.0
    for k in range(steps + warmup):
        if k == warmup:
            synchronise()
            start = time.perf_counter()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    synchronise()
    return (time.perf_counter() - start) / steps


def _channels_last(config: Json, device: Any) -> Any:
    """The backbone of a config on the device, in the memory format channels_last."""
    import torch

    from kdep_bench.networks.backbone import build_backbone

    return build_backbone(config).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _resnet(depth: int) -> Json:
    return dict(
        backbone=dict(type="mmpretrain.ResNet", depth=depth, style="pytorch"),
        width={18: 512, 50: 2048}[depth],
    )


def _vit(px: int) -> Json:
    backbone = dict(
        type="kdep_bench.students.timm_backbone.TimmBackbone",
        model="vit_small_patch16_224",
        dynamic_img_size=True,
    )
    return dict(backbone=backbone, width=384, input_px=px)


def _throughput(device: Any, side: int, dtype: Any) -> float:
    """FLOP/s of a matrix product [side, side] x [side, side]."""
    import torch

    from kdep_bench.gpu_check.hardware import fastest_seconds

    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / fastest_seconds(lambda: torch.mm(a, a), 4)


def _forward_flops(net: Any, images: Any) -> float:
    """FLOPs of a forward pass of all images."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images)
    return float(counter.get_total_flops())


CHECK = Check("training speed at 224 px", order=60, seconds=70, min_seconds=15, run=_run)

"""Check: images per second of KDEP with cache, KDEP with live teacher, and supervised training.

For ResNet-18 and ViT-S at 224 px with a ResNet-50 teacher, on one batch that stays on the device,
so without data loading (see `ratios`). Each with its upper bound: the step's FLOPs at the
throughput of a large matrix product of the same format.
"""

from __future__ import annotations

import time
from typing import Any

from kdep_bench.gpu_check.base import Check, Json, Outcome, Setting


def _run(setting: Setting, outcome: Outcome) -> None:
    import torch

    from kdep_bench.devices import compute_device, synchronise
    from kdep_bench.networks.backbone import build_backbone

    device, quick = compute_device(), setting.quick
    px, batch, steps = (64, 2, 1) if quick else (224, 256, 20)
    dtype = torch.bfloat16
    torch.backends.cudnn.benchmark = True
    rate = _rate(device, 256 if quick else 8192, dtype)
    teacher = build_backbone(_resnet(50)).to(device)
    teacher.eval()  # mm backbones return nothing from it
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, px, px, device=device).contiguous(
        memory_format=torch.channels_last
    )
    teacher_flops = _forward_flops(teacher, images)
    labels = torch.randint(0, 1000, (batch,), device=device)
    for name, student in (("ResNet-18", _resnet(18)), ("ViT-S", _vit(px))):
        net = build_backbone(student).to(device)
        net.train()
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        head = torch.nn.Linear(student["width"], 1000).to(device)
        target = torch.randn(batch, student["width"], device=device)
        basis = torch.randn(2048, student["width"], device=device) / 45
        optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], 1e-3, momentum=0.9)

        def feature(net: Any = net) -> Any:
            with torch.autocast(device.type, dtype):
                out = net(images)
            last = out[-1] if isinstance(out, (tuple, list)) else out
            return (last.mean((2, 3)) if last.ndim == 4 else last).float()

        def cached(feature: Any = feature, target: Any = target) -> Any:
            return (feature() - target).square().mean()

        def live(feature: Any = feature, basis: Any = basis) -> Any:
            with torch.no_grad(), torch.autocast(device.type, dtype):
                target_live = teacher(images)[-1].mean((2, 3)).float() @ basis
            return (feature() - target_live).square().mean()

        def supervised(feature: Any = feature, head: Any = head) -> Any:
            return torch.nn.functional.cross_entropy(head(feature()), labels)

        student_flops = 3 * _forward_flops(net, images)
        for training, loss, flops in (
            ("KDEP, cached", cached, student_flops),
            ("KDEP, live teacher", live, student_flops + teacher_flops),
            ("supervised", supervised, student_flops),
        ):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for k in range(steps + 3):
                if k == 3:
                    synchronise()
                    start = time.perf_counter()
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            synchronise()
            seconds = (time.perf_counter() - start) / steps
            label = f"{name} at {px} px, {training}"
            outcome.figure(label, batch / seconds, "images/s")
            outcome.figure(f"{label}: floor of its arithmetic", batch * rate / flops, "images/s")
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                outcome.figure(f"{label}: peak memory at batch {batch}", peak, "GiB")


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


def _rate(device: Any, side: int, dtype: Any) -> float:
    """FLOP/s of a large matrix product."""
    import torch

    from kdep_bench.gpu_check.hardware import _best

    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / _best(lambda: torch.mm(a, a), 4)


def _forward_flops(net: Any, images: Any) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images)
    return float(counter.get_total_flops())


CHECK = Check("training speed at 224 px", 60, 70, 15, _run)

"""Check: loss and gradient with autocast, another memory layout or torch.compile, against float32.

The report calls float32 without these options eager float32.
"""

from __future__ import annotations

from typing import Any

from kdep_bench.gpu_check.base import Check, Measurements, Setting

# Bounds of the relative L2 difference of the gradient of all parameters. bfloat16 rounds to 2^-8
# and float16 to 2^-11; the contiguous layout and compilation only change the order of sums.
# BatchNorm amplifies rounding errors of the layers before it.
BOUNDS = {"bfloat16": 0.25, "float16": 0.03, "contiguous": 1e-3, "compiled": 1e-3}


def _run(setting: Setting, measurements: Measurements) -> None:
    import torch

    from kdep_bench.gpu_check import synthetic
    from kdep_bench.suite.config import resolve

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    student, method = resolve("student", synthetic.STUDENT), resolve("method", "kdep")
    stage_folders, batch = synthetic.shared_stages(setting), 16 if setting.quick else 64

    def gradient(precision: str = "float32", layout: Any = None, **model: Any) -> tuple[Any, Any]:
        spec = synthetic.pretrain_spec(method, student, 1.0, batch, precision=precision)
        net, load = synthetic.build(spec, stage_folders, setting.folder, **model)
        if layout is not None:
            net.backbone.to(memory_format=layout)
        scale = 1024.0 if precision == "float16" else 1.0
        loss = synthetic.total_loss(net, synthetic.on_device(load(0)))
        (loss * scale).backward()
        grads = [p.grad.flatten().double() / scale for p in net.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat(grads)

    reference_loss, reference = gradient()
    # The default backend, inductor, takes minutes on a CPU.
    backend = "aot_eager" if setting.quick else "inductor"
    variants: dict[str, dict[str, Any]] = {
        "bfloat16": dict(precision="bfloat16"),
        "contiguous": dict(layout=torch.contiguous_format),
        "compiled": dict(compile=backend),
    }
    if setting.device == "cuda":  # float16 convolutions are very slow on a CPU
        variants["float16"] = dict(precision="float16")
    for name, options in variants.items():
        loss, result = gradient(**options)
        difference = float((result - reference).norm() / reference.norm())
        bound = BOUNDS[name]
        label = f"{name}: gradient against eager float32"
        measurements.claim(label, difference <= bound, difference, f"<= {bound:g}")
        loss_label = f"{name}: loss / loss with eager float32"
        measurements.figure(loss_label, loss / reference_loss, "ratio")


CHECK = Check("precision, layout and compilation", order=30, seconds=90, min_seconds=15, run=_run)

"""Check: loss and gradient of autocast, memory layout and torch.compile against float32."""

from __future__ import annotations

from typing import Any

from kdep_bench.gpu_check.base import Check, Measurements, Setting

# Relative L2 difference of the whole gradient. bfloat16 rounds to 2^-8, float16 to 2^-11 and the
# other two only change the order of sums; BatchNorm multiplies what the layers before it round.
BOUNDS = {"bfloat16": 0.25, "float16": 0.03, "contiguous": 1e-3, "compiled": 1e-3}


def _run(setting: Setting, measurements: Measurements) -> None:
    import torch

    from kdep_bench.gpu_check import synthetic
    from kdep_bench.suite.config import resolve

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    student, method = resolve("student", synthetic.STUDENT), resolve("method", "kdep")
    done, batch = synthetic.shared_stages(setting), 16 if setting.quick else 64

    def gradient(precision: str = "float32", layout: Any = None, **model: Any) -> tuple[Any, Any]:
        spec = synthetic.spec_of(method, student, 1.0, batch, precision=precision)
        net, load = synthetic.build(spec, done, setting.folder, **model)
        if layout is not None:
            net.backbone.to(memory_format=layout)
        scale = 1024.0 if precision == "float16" else 1.0
        loss = synthetic.loss_of(net, synthetic.on_device(load(0)))
        (loss * scale).backward()
        grads = [p.grad.flatten().double() / scale for p in net.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat(grads)

    want_loss, want = gradient()
    inductor = "aot_eager" if setting.quick else "inductor"  # a CPU would compile for minutes
    variants: dict[str, dict[str, Any]] = {
        "bfloat16": dict(precision="bfloat16"),
        "contiguous": dict(layout=torch.contiguous_format),
        "compiled": dict(compile=inductor),
    }
    if setting.device == "cuda":  # a CPU has no float16 convolutions worth the name
        variants["float16"] = dict(precision="float16")
    for name, options in variants.items():
        loss, got = gradient(**options)
        difference = float((got - want).norm() / want.norm())
        bound = BOUNDS[name]
        label = f"{name}: gradient against eager float32"
        measurements.claim(label, difference <= bound, difference, f"<= {bound:g}")
        measurements.figure(f"{name}: loss over that of eager float32", loss / want_loss, "ratio")


CHECK = Check("precision, layout and compilation", 30, 90, 15, _run)

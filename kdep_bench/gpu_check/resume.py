"""Check: an interrupted and resumed pre-training stage against an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdep_bench.gpu_check.base import Check, Json, Measurements, Setting
from kdep_bench.pretrain import checkpoint

TOLERANCE = 1e-3  # where kernels are not deterministic; on a CPU both runs are equal bit for bit


class _Interrupted(Exception):
    """Stands for a kill in the middle of a run."""


def _run(setting: Setting, measurements: Measurements) -> None:
    import os

    import torch

    from kdep_bench.gpu_check import synthetic
    from kdep_bench.suite.config import resolve

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    student, method = resolve("student", synthetic.STUDENT), resolve("method", "kdep")
    done, batch = synthetic.shared_stages(setting), 16 if setting.quick else 64
    spec = synthetic.spec_of(
        method, student, 1.0 if setting.quick else 4.0, batch, schedule="cosine", warmup=0.1
    )
    uninterrupted = _train(spec, done, setting.folder / "whole", None)
    resumed_at = _train(spec, done, setting.folder / "resumed", 0.7)
    assert resumed_at is None
    resumed = _train(spec, done, setting.folder / "resumed", None)
    assert uninterrupted is not None
    assert resumed is not None
    worst = max(
        float((a.double() - resumed[k].double()).norm() / a.double().norm().clamp(min=1e-12))
        for k, a in uninterrupted.items()
    )
    exact = all(torch.equal(a, resumed[k]) for k, a in uninterrupted.items())
    bound = f"<= {TOLERANCE:g}" if setting.device == "cuda" else "equal"
    ok = worst <= TOLERANCE if setting.device == "cuda" else exact
    measurements.claim("weights of the resumed run against the uninterrupted one", ok,
                  "equal" if exact else worst, bound)  # fmt: skip


def _train(spec: Json, done: dict[str, Path], out: Path, until: float | None) -> Any:
    """The trained state dict; None if interrupted, at the fraction `until` of its steps."""
    import torch

    from kdep_bench.pretrain import stage

    out.mkdir(exist_ok=True)

    def progress(done_steps: float, steps: float, *_: Any, **__: Any) -> None:
        if until is not None and done_steps >= until * steps:
            raise _Interrupted

    try:
        stage.run(spec, done, out, progress)
    except _Interrupted:
        return None
    return torch.load(out / checkpoint.CHECKPOINT, map_location="cpu", weights_only=True)


CHECK = Check("interrupted and resumed", 40, 60, 15, _run)

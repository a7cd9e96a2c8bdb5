"""Check: an interrupted and resumed pre-training gives the same weights as an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdep_bench.gpu_check.base import Check, Json, Measurements, Setting
from kdep_bench.pretrain import checkpoint

# Relative L2 difference on a GPU, where some kernels are not deterministic. On a CPU both runs must
# be equal bit for bit.
TOLERANCE = 1e-3


class _Interrupted(Exception):
    """Ends a training in the middle, as a kill would."""


def _run(setting: Setting, measurements: Measurements) -> None:
    import os

    import torch

    from kdep_bench.gpu_check import synthetic
    from kdep_bench.suite.config import resolve

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    student, method = resolve("student", synthetic.STUDENT), resolve("method", "kdep")
    stage_folders, batch = synthetic.shared_stages(setting), 16 if setting.quick else 64
    spec = synthetic.pretrain_spec(
        method, student, 1.0 if setting.quick else 4.0, batch, schedule="cosine", warmup=0.1
    )
    uninterrupted = _train(spec, stage_folders, setting.folder / "whole", None)
    interrupted = _train(spec, stage_folders, setting.folder / "resumed", 0.7)
    assert interrupted is None
    resumed = _train(spec, stage_folders, setting.folder / "resumed", None)
    assert uninterrupted is not None
    assert resumed is not None
    worst = max(
        float((a.double() - resumed[k].double()).norm() / a.double().norm().clamp(min=1e-12))
        for k, a in uninterrupted.items()
    )
    is_equal = all(torch.equal(a, resumed[k]) for k, a in uninterrupted.items())
    bound = f"<= {TOLERANCE:g}" if setting.device == "cuda" else "equal"
    is_ok = worst <= TOLERANCE if setting.device == "cuda" else is_equal
    label = "weights of the resumed run against the uninterrupted one"
    measurements.claim(label, is_ok, "equal" if is_equal else worst, bound)


def _train(spec: Json, stage_folders: dict[str, Path], out: Path, until: float | None) -> Any:
    """Starts or resumes a pre-training.

    `until`: fraction of the steps after which the training is interrupted; None: never.

    Returns:
        the trained state dict; None if the training was interrupted.
    """
    import torch

    from kdep_bench.pretrain import stage

    out.mkdir(exist_ok=True)

    def progress(done_steps: float, steps: float, *_: Any, **__: Any) -> None:
        if until is not None and done_steps >= until * steps:
            raise _Interrupted

    try:
        stage.run(spec, stage_folders, out, progress)
    except _Interrupted:
        return None
    return torch.load(out / checkpoint.CHECKPOINT, map_location="cpu", weights_only=True)


CHECK = Check("interrupted and resumed", order=40, seconds=60, min_seconds=15, run=_run)

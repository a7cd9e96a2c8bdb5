"""Check: every method lowers its loss, without waiting for the GPU; also measures peak memory."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.gpu_check.base import Check, Json, Measurements, Setting
from kdep_bench.registry import locate

WARMUP_STEPS, COUNTED_STEPS = 3, 20  # training steps before and during the count of waits
EPOCHS = 16.0  # as in the suites: the schedules of some methods do not fit into fewer epochs


def _run(setting: Setting, measurements: Measurements) -> None:
    import torch

    from kdep_bench.gpu_check import synthetic
    from kdep_bench.suite.config import names, resolve
    from kdep_bench.suite.schema import method_needs

    student, stage_folders = resolve("student", synthetic.STUDENT), synthetic.shared_stages(setting)
    batch, n_warmup, n_counted = (4, 1, 1) if setting.quick else (64, WARMUP_STEPS, COUNTED_STEPS)
    seen: set[tuple[str, ...]] = set()
    left_out = f"left out, {synthetic.STUDENT} does not fit"
    for name in names("method"):
        method = resolve("method", name)
        if method.get("objective") is None:
            continue
        if locate(method["objective"]["type"]).transformer:
            measurements.claim(f"{name}: {left_out}", True, "-", "-")
            continue
        # A quick run uses one method per set of inputs (tests/objectives trains all methods).
        align = method.get("align") or {}
        reads_from_augment = locate(method["objective"]["type"]).reads_from_augment
        kind = (*sorted(method_needs(method)), str(align.get("type")), str(reads_from_augment))
        if setting.quick and kind in seen:
            continue
        seen.add(kind)
        # One batch must have enough positions for all prototypes.
        if setting.quick and "prototypes" in method["objective"]:
            method["objective"]["prototypes"] = batch
        # The suite's teacher replaces an intermediate teacher, which would have to be trained.
        method.pop("teacher", None)
        inputs = {k: v for k, v in stage_folders.items() if k != "align"}
        inputs["images"] = inputs["prepare"]  # for objectives that read the teacher's images
        if align == {"type": "svd"}:
            inputs["align"] = stage_folders["align"]
        elif align:
            aligned = _align(setting.folder / name, stage_folders, student, method)
            if aligned is None:
                measurements.claim(f"{name}: {left_out}", True, "-", "-")
                continue
            inputs["align"] = aligned
        for role in method.get("teachers", {}):  # the same cache is used for all teachers
            shared = {k: inputs[k] for k in ("cache", "align") if k in inputs}
            inputs |= {f"{role}.{k}": folder for k, folder in shared.items()}
        before, after, waits = _train(
            setting, name, method, student, inputs, batch, n_warmup, n_counted
        )
        # In the few steps of a quick run the loss need not fall.
        is_ok = math.isfinite(after) and (setting.quick or after < before)
        bound = "finite" if setting.quick else "falls"
        measurements.claim(f"{name}: loss of a batch", is_ok, f"{before:.4g} to {after:.4g}", bound)
        if waits is not None:
            measurements.claim(f"{name}: waits for the GPU per step", waits == 0, waits, "0")
        if setting.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            measurements.figure(f"{name}: peak memory at batch {batch}", peak, "MiB")
            torch.cuda.reset_peak_memory_stats()


def _align(
    folder: Path, stage_folders: dict[str, Path], student: Json, method: Json
) -> Path | None:
    """Folder of a method's alignment; None if the method requires equal widths of the networks."""
    from kdep_bench.features import align
    from kdep_bench.gpu_check.synthetic import silent

    folder.mkdir()
    spec = dict(width=student["width"], share=1.0, share_seed=0, align=method["align"])
    try:
        align.run(spec, stage_folders, folder, silent)
    except KdepError:
        if not str(method["align"].get("type")).endswith(".Identity"):
            raise  # all other alignments support unequal widths, so this is a fault
        return None
    return folder


def _train(
    setting: Setting,
    name: str,
    method: Json,
    student: Json,
    inputs: dict[str, Path],
    batch: int,
    n_warmup: int,
    n_counted: int,
) -> tuple[float, float, float | None]:
    """Trains on a single batch.

    The loss before and after training is computed with the loss weights of the last step. Otherwise
    a weight that grows during training would look like a rise of the loss.

    Args:
        setting: the input of the check.
        name, method, student: the method's name, and the configs.
        inputs: stage kind -> folder.
        batch: images of the batch.
        n_warmup, n_counted: training steps before and during the count of waits.

    Returns:
        (loss before, loss after, waits for the GPU per step; None on a CPU).
    """
    import torch

    from kdep_bench.gpu_check import synthetic
    from kdep_bench.suite.schema import method_needs

    spec, augment = synthetic.pretrain_spec(method, student, EPOCHS, batch), None
    reads_attention = "attention" in method_needs(method)
    needs_live_teacher = locate(method["objective"]["type"]).reads_from_augment or reads_attention
    if needs_live_teacher:
        spec["teacher"] = (
            synthetic.vision_transformer()
            if reads_attention
            else synthetic.pocket_teacher(setting.quick)
        )
        augment = method.get("augment")
        inputs = {**inputs, "images": inputs["prepare"]}
    net, load = synthetic.build(spec, inputs, setting.folder / f"{name}-run", augment=augment)
    net.steps = n_warmup + n_counted
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    data = synthetic.on_device(load(0))

    def loss_at_the_end() -> float:
        net.step = net.steps - 1
        with torch.no_grad():
            return float(synthetic.total_loss(net, data))

    def step(k: int) -> None:
        net.step = k
        optimizer.zero_grad()
        loss = synthetic.total_loss(net, data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        net.objective.after_step()

    before = loss_at_the_end()
    for k in range(n_warmup):
        step(k)
    waits = None
    if setting.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for k in range(n_warmup, net.steps):
                step(k)
        torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchroniz" in str(w.message) for w in caught) / n_counted
    else:
        for k in range(n_warmup, net.steps):
            step(k)
    return before, loss_at_the_end(), waits


CHECK = Check("a step of every method", order=20, seconds=150, min_seconds=20, run=_run)

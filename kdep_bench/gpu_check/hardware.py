"""Check: speed of matrix products in each number format, and of memory copies."""

from __future__ import annotations

from kdep_bench.gpu_check.base import Check, Measurements, Setting


def _run(setting: Setting, measurements: Measurements) -> None:
    import torch

    from kdep_bench.devices import compute_device

    device = compute_device()
    side = 8192 if setting.device == "cuda" else 256
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        if setting.device == "cpu" and name in ("TF32", "float16"):
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = fastest_seconds(lambda a=a: torch.mm(a, a))
        measurements.figure(f"matrix product, {name}", 2 * side**3 / seconds / 1e12, "TFLOP/s")
    size = 2**30 if setting.device == "cuda" else 2**24  # bytes
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = fastest_seconds(lambda: target.copy_(source))
    measurements.figure(
        "copy within memory (bytes read + bytes written)", 2 * size / seconds / 1e12, "TB/s"
    )
    if setting.device == "cuda":
        host = torch.zeros(2**28, dtype=torch.uint8, pin_memory=True)  # 256 MiB
        seconds = fastest_seconds(lambda: target[: 2**28].copy_(host, non_blocking=True))
        measurements.figure("copy from pinned host memory", 2**28 / seconds / 1e9, "GB/s")


def fastest_seconds(call: object, times: int = 8) -> float:
    """Seconds of the fastest of `times` calls, after one call that is not measured."""
    import time

    from kdep_bench.devices import synchronise

    best = float("inf")
    assert callable(call)
    call()
    for _ in range(times):
        synchronise()
        start = time.perf_counter()
        call()
        synchronise()
        best = min(best, time.perf_counter() - start)
    return best


CHECK = Check("hardware", order=5, seconds=30, min_seconds=3, run=_run)

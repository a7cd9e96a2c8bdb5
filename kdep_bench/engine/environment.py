"""Package versions, device, CPU time and peak GPU memory of a process, for stage.json."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

from kdep_bench.engine.stage_process import StageRequest

PACKAGES = (
    "torch",
    "torchvision",
    "mmengine",
    "mmcv-lite",
    "mmcv",
    "mmdet",
    "mmsegmentation",
    "mmpretrain",
    "timm",
    "numpy",
    "scikit-learn",
    "pycocotools",
    "opencv-python-headless",
    "kdep_bench",
)


def environment(request: StageRequest) -> dict[str, Any]:
    """Versions, device, threads and git revision; no host name and no path."""
    return {
        "python": platform.python_version(),
        "packages": packages(),
        "device": device(),
        "processor_units": processor_units(),
        "threads": request.stage.cpus,
        "git": request.git,
    }


@cache
def packages() -> dict[str, str]:
    """Versions of the packages in PACKAGES; looked up once, in the fork server."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def device() -> str:
    """The GPU's name if this process has used CUDA, else the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu: {line.partition(':')[2].strip()}"
    return f"cpu: {platform.machine()}"


#: CPU features by which torch and NumPy choose their kernels, as in /proc/cpuinfo; widest first.
UNITS = ("amx_bf16", "amx_int8", "amx_fp16", "avx512_bf16", "avx512_vnni", "avx512_fp16", "avx512f",
         "avx2", "fma", "sve2", "sve", "bf16", "asimd")  # fmt: skip


def processor_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Matrix and vector units of the processor; empty if the system does not list them.

    They are recorded because results depend on them: on a processor with other units, the same seed
    trains a different network.
    """
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags |= set(values.split())
    return [unit for unit in UNITS if unit in flags]


def peak_gpu() -> dict[str, int]:
    """{"peak_gpu": largest GPU memory in bytes that torch reserved}; empty if it used no GPU.

    The peak of the allocated memory (`max_memory_allocated`) cannot be used, because mmengine
    resets it every time it logs.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"peak_gpu": torch.cuda.max_memory_reserved()}


def largest_peak(usages: list[dict[str, Any]]) -> dict[str, int]:
    """{"peak_gpu": the largest value of several processes}; empty if none used a GPU."""
    peaks = [usage["peak_gpu"] for usage in usages if "peak_gpu" in usage]
    return {"peak_gpu": max(peaks)} if peaks else {}


def cpu_seconds() -> float:
    """CPU time of this process and its ended children, user and system, in seconds."""
    total = 0.0
    for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(target)
        total += usage.ru_utime + usage.ru_stime
    return total

"""Driver, torch build and GPUs of this machine, and which GPUs the checks can use."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import warnings
from dataclasses import dataclass, field
from typing import Any

from kdep_bench.errors import KdepError

# GiB of free memory for the largest check (a batch of 256 at 224 px with a live teacher), with a
# margin.
NEEDED_GIB = 12.0


@dataclass(frozen=True)
class MachineInfo:
    """GPU-related versions and devices of this machine.

    Attributes:
        torch: version of torch.
        built_for: CUDA version for which torch was built; None for a CPU build.
        driver: driver version from nvidia-smi; None if unknown.
        has_library: whether the driver's library libcuda.so.1 can be loaded.
        is_available: result of torch.cuda.is_available().
        warning: torch's warnings during this call.
        gpus: {"number", "name", "free_gib", "total_gib"} of each visible GPU.
    """

    torch: str
    built_for: str | None
    driver: str | None
    has_library: bool
    is_available: bool
    warning: str = ""
    gpus: list[dict[str, Any]] = field(default_factory=list)


def detect() -> MachineInfo:
    """Queries torch, nvidia-smi and the driver's library.

    If there is a GPU, it initialises CUDA: do not fork the process afterwards.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    gpus = []
    for k in range(torch.cuda.device_count()) if is_available else ():
        try:
            free, total = torch.cuda.mem_get_info(k)
        except RuntimeError as e:  # another process uses the GPU exclusively, or it is broken
            gpus.append({"number": str(k), "name": str(e).splitlines()[0], "free_gib": 0.0})
            continue
        gpus.append(
            {
                "number": str(k),
                "name": torch.cuda.get_device_properties(k).name,
                "free_gib": free / 2**30,
                "total_gib": total / 2**30,
            }
        )
    return MachineInfo(
        torch=torch.__version__,
        built_for=torch.version.cuda,
        driver=_driver(),
        has_library=_has_driver_library(),
        is_available=is_available,
        warning=" ".join(str(w.message).splitlines()[0] for w in caught),
        gpus=gpus,
    )


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if result.returncode or not result.stdout:
        return None
    return result.stdout.splitlines()[0].strip()


def _has_driver_library() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def usable(info: MachineInfo, needed_gib: float = NEEDED_GIB) -> tuple[str, ...]:
    """Numbers of the GPUs with enough free memory.

    Raises:
        KdepError: torch is a CPU build, the driver is missing or too old for torch, torch finds no
            GPU, or no GPU has enough free memory.
    """
    if info.built_for is None:
        raise KdepError(
            f"torch {info.torch} is a CPU build",
            fix="install a CUDA build of torch, or run with --device cpu",
        )
    if not info.is_available and not info.has_library:
        raise KdepError(
            "this machine has no NVIDIA driver (libcuda.so.1 cannot be loaded)",
            expected=f"a driver for CUDA {info.built_for}, for which torch {info.torch} was built",
            fix="install the driver (in a container: start it with --gpus all), or run with "
            "--device cpu",
        )
    if not info.is_available and "too old" in info.warning:
        raise KdepError(
            f"the NVIDIA driver {info.driver or '(of unknown version)'} is too old for torch "
            f"{info.torch}, which was built for CUDA {info.built_for}",
            fix="update the driver, or install a build of torch for an older CUDA",
        )
    if not info.is_available:
        raise KdepError(
            f"torch {info.torch} finds no GPU"
            + (f" ({info.warning})" if info.warning else "")
            + (f", with driver {info.driver}" if info.driver else ""),
            fix="check CUDA_VISIBLE_DEVICES and nvidia-smi, or run with --device cpu",
        )
    usable_gpus = [gpu for gpu in info.gpus if gpu["free_gib"] >= needed_gib]
    if not usable_gpus:
        listing = ", ".join(f"{gpu['number']}: {gpu['free_gib']:.1f} GiB" for gpu in info.gpus)
        raise KdepError(
            f"no GPU has {needed_gib:g} GiB free ({listing})",
            fix="end the processes that use the GPU (nvidia-smi lists them), or use a larger GPU",
        )
    return tuple(gpu["number"] for gpu in usable_gpus)

"""Which device this process computes on, and how many cores it may use. Imports no torch.

The fork server imports the toolkits for stages with a GPU and stages without. Two things go wrong
if it looks for GPUs while it does: torch's check initialises the CUDA driver, which no forked child
can use then ("Cannot re-initialize CUDA in forked subprocess"), and the toolkits keep what they saw
in constants, so that a stage without a GPU would still ask for one. So the server is blindfolded
(`hide_gpus`) and each stage looks for itself (`show_gpus`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    import torch

# torch then counts devices by NVML (torch.cuda.is_available), which does not initialise the driver;
# no device is visible, so that neither NVML nor the driver is asked where NVML is absent.
_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# What the toolkits find out as they are imported: constant, in each module that has a copy of it.
_DEVICE = ("mmengine.device.utils", "DEVICE")
_IS_CUDA = tuple(
    (module, "IS_CUDA_AVAILABLE")
    for module in ("mmcv.utils.device_type", "mmcv.utils", "mmcv.ops.multi_scale_deform_attn")
)


def hide_gpus() -> None:
    """Before torch is imported where others will be forked from: nothing here touches a GPU."""
    os.environ[_NVML], os.environ[_VISIBLE] = "1", ""


def show_gpus(gpus: Sequence[str]) -> None:
    """This process sees `gpus` (device numbers or UUIDs) and no others.

    To be called before CUDA is used. What a fork server found out for itself, in the constants of
    toolkits that are imported by now, is found out again.
    """
    os.environ[_NVML], os.environ[_VISIBLE] = "1", ",".join(gpus)
    torch = sys.modules.get("torch")
    found = torch is not None and torch.cuda.is_available()
    for module, name in (_DEVICE, *_IS_CUDA):
        if hasattr(sys.modules.get(module), name):
            told = ("cuda" if found else "cpu") if name == "DEVICE" else found
            setattr(sys.modules[module], name, told)


def check_gpus(gpus: Sequence[str]) -> None:
    """KdepError where GPUs were given and torch, imported by now, can use none of them.

    The work would go on for days on the CPU without a word.
    """
    torch = sys.modules.get("torch")
    if gpus and torch is not None and not torch.cuda.is_available():
        raise KdepError(
            f"the stage was assigned GPU {', '.join(gpus)}, but torch {torch.__version__} finds "
            "no GPU",
            expected="an NVIDIA driver that fits the torch build",
            fix="run tools/doctor.py for details, or run without GPUs: --gpus ''",
        )


def compute_device() -> torch.device:
    """The GPU this process may use, else the CPU; of several ranks on a node each has its own.

    By its number, because a rank works before it joins the others and is bound to its GPU: teachers
    of all ranks would meet on the first.
    """
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if rank is None else torch.device("cuda", int(rank))


def synchronise() -> None:
    """Waits for what was given to the GPU, if it was used: to be called before a clock is read."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def cores() -> int:
    """Cores this process was given: a stage's share of them, else all it may run on."""
    return int(os.environ.get("KDEP_CPUS") or len(os.sched_getaffinity(0)))


def loader_workers(batch_bytes: int, most: int = 8) -> int:
    """Worker processes of a loader whose batches take `batch_bytes`: `most` at most, as the cores
    allow beside the process that trains, and as batches on their way (two waiting and one in the
    making, a worker) have room in shared memory, of which a container often has 64 MB.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")
        room = shared.f_bavail * shared.f_frsize // ranks
        most = min(most, room // max(1, 3 * batch_bytes))
    return max(0, min(most, cores() - 1))

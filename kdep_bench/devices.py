"""The GPUs and the number of cores of this process. Imports no torch.

The fork server imports the toolkits for all stages, with and without a GPU. It must not see GPUs,
for two reasons. When torch checks for a GPU, it initialises the CUDA driver, which forked children
cannot use ("Cannot re-initialize CUDA in forked subprocess"). The toolkits store the result of the
check in constants, so that a stage without a GPU would still use a GPU. Therefore
CUDA_VISIBLE_DEVICES is empty in the server (`hide_gpus`), and each stage sets it (`show_gpus`).
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

# With this variable torch.cuda.is_available counts devices with NVML, which does not initialise the
# driver. If NVML is missing, the driver is not initialised either as long as no device is visible.
_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# (module, name) of the constants that the toolkits set on import. Several modules have a copy of
# IS_CUDA_AVAILABLE.
_DEVICE = ("mmengine.device.utils", "DEVICE")
_IS_CUDA = tuple(
    (module, "IS_CUDA_AVAILABLE")
    for module in ("mmcv.utils.device_type", "mmcv.utils", "mmcv.ops.multi_scale_deform_attn")
)


def hide_gpus() -> None:
    """Makes all GPUs invisible to this process; call it before torch is imported."""
    os.environ[_NVML], os.environ[_VISIBLE] = "1", ""


def show_gpus(gpus: Sequence[str]) -> None:
    """Makes only `gpus` (device numbers or UUIDs) visible to this process.

    Call it before CUDA is used. Also corrects the constants of toolkits that are already imported.
    """
    os.environ[_NVML], os.environ[_VISIBLE] = "1", ",".join(gpus)
    torch = sys.modules.get("torch")
    has_gpu = torch is not None and torch.cuda.is_available()
    for module, name in (_DEVICE, *_IS_CUDA):
        if hasattr(sys.modules.get(module), name):
            value = ("cuda" if has_gpu else "cpu") if name == "DEVICE" else has_gpu
            setattr(sys.modules[module], name, value)


def check_gpus(gpus: Sequence[str]) -> None:
    """Raises KdepError if GPUs were assigned but torch cannot use any.

    Otherwise the work would silently run on the CPU. Does nothing if torch is not imported.
    """
    torch = sys.modules.get("torch")
    if gpus and torch is not None and not torch.cuda.is_available():
        raise KdepError(
            f"the stage was assigned GPU {', '.join(gpus)}, but torch {torch.__version__} finds "
            "no GPU",
            expected="an NVIDIA driver that fits the torch build",
            fix="run kdep-bench doctor for details, or run without GPUs: --gpus ''",
        )


def compute_device() -> torch.device:
    """The GPU of this process, or the CPU; with several ranks on a node, each has a different GPU.

    The number of the GPU is LOCAL_RANK. torch's current device is not used, because a rank sets it
    only when it joins the process group. Teachers run before that, and the teachers of all ranks
    would use the first GPU.
    """
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if rank is None else torch.device("cuda", int(rank))


def synchronise() -> None:
    """Waits for all work on the GPU, if CUDA is in use; call it before reading a clock."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def cores() -> int:
    """Number of cores that the stage was given; outside a stage, that this process may use."""
    return int(os.environ.get("KDEP_CPUS") or len(os.sched_getaffinity(0)))


def loader_workers(batch_bytes: int, max_workers: int = 8) -> int:
    """Number of worker processes for a data loader.

    One core remains for the training process. Three batches per worker (two waiting, one in
    progress) must fit into shared memory; a container often has only 64 MB of it.

    Args:
        batch_bytes: bytes of one batch.
        max_workers: upper limit of the result.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")
        free_bytes = shared.f_bavail * shared.f_frsize // ranks
        max_workers = min(max_workers, free_bytes // max(1, 3 * batch_bytes))
    return max(0, min(max_workers, cores() - 1))

"""Cores and GPUs of this machine, and the git revision of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.paths import IS_INSTALLED, ROOT

_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def find_gpus() -> tuple[str, ...]:
    """Device numbers of the GPUs, without torch; respects CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(v for v in visible.split(",") if v)
    return tuple(str(i) for i in range(_installed_gpus() or 0))


def _installed_gpus() -> int | None:
    """Number of GPUs of this machine, also if CUDA_VISIBLE_DEVICES hides them; None: unknown."""
    if shutil.which("nvidia-smi") is None:
        # GPUs can work without nvidia-smi; their device files exist then.
        return None if any(Path("/dev").glob(p) for p in ("nvidia*", "dxg")) else 0
    try:
        result = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return sum(line.startswith("GPU ") for line in result.stdout.splitlines())


def parse_gpus(text: str) -> tuple[str, ...]:
    """The devices of a comma-separated list (option --gpus); () for an empty text.

    Raises:
        KdepError: an entry is neither a device number nor a UUID; the list has both kinds (CUDA
            would ignore its end); or a device occurs twice (two stages would use it at once).
    """
    if not text.strip():
        return ()
    gpus = tuple(part.strip() for part in text.split(","))
    expected = "device numbers, e.g. 0,1, or UUIDs as nvidia-smi -L lists them; '' for none"
    fix = "correct --gpus"
    for gpu in gpus:
        if not (_NUMBER.fullmatch(gpu) or _UUID.fullmatch(gpu)):
            raise KdepError(
                f"--gpus {text!r} contains {gpu!r}, which is not a GPU", expected=expected, fix=fix
            )
    if len({bool(_NUMBER.fullmatch(gpu)) for gpu in gpus}) > 1:
        raise KdepError(f"--gpus {text!r} mixes numbers and UUIDs", expected=expected, fix=fix)
    for gpu in gpus:
        if gpus.count(gpu) > 1:
            raise KdepError(f"--gpus {text!r} contains {gpu} twice", fix=fix)
    return gpus


def check_installed(gpus: Sequence[str]) -> None:
    """Raises KdepError for a device number that this machine does not have."""
    count = _installed_gpus()
    if count is None:
        return
    missing = [gpu for gpu in gpus if not gpu.isdigit() or int(gpu) >= count]
    if count:  # UUIDs are not checked here: CUDA reports a wrong UUID
        missing = [gpu for gpu in missing if gpu.isdigit()]
    if missing:
        available = {0: "no GPU", 1: "GPU 0 only"}.get(count, f"GPU 0 to {count - 1}")
        raise KdepError(
            f"--gpus has GPU {', '.join(missing)}, but this machine has {available}",
            fix="correct --gpus, or leave it out to use all GPUs of this machine",
        )


def git_revision() -> str:
    """Short git revision of this repository, with '+' if files differ from it; '' if unknown."""
    if IS_INSTALLED:  # the wheel's folder may be inside the repository of another project
        return ""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""

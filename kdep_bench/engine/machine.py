"""What this machine has: cores, GPUs, and the git revision of the code."""

from __future__ import annotations

import os
import shutil
import subprocess

from kdep_bench.suite.config import REPO


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def find_gpus() -> tuple[str, ...]:
    """Device numbers of the GPUs, without torch; respects CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(v for v in visible.split(",") if v)
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(lines)))


def git_revision() -> str:
    """Short revision of the repository, '+' appended where files differ from it; '' if unknown."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""

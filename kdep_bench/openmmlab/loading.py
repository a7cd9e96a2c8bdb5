"""Loads checkpoints, always with `weights_only=True`: only tensors and plain containers.

The checkpoints from which mmengine resumes also contain HistoryBuffer objects with numpy arrays.
These classes, and `getattr` for the statistics of HistoryBuffer, are allowed in checkpoints of this
run only; no other code in a file can run. Such a file must be in the work dir of this process's
Runner and must have a seal: a second file with its SHA-256, which `SealHook` writes. A seal shows
that the checkpoint is complete and unchanged; it is not a signature.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from numpy._core.multiarray import _reconstruct, scalar

from kdep_bench.checkpoints import read_checkpoint
from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, write_atomic

RESUME = "kdep-resume://"  # before the path of a checkpoint with a seal, to resume from

_trusted_work_dirs: set[Path] = set()  # work dirs whose checkpoints this process may resume from
_STATISTICS = ("min", "max", "current", "mean")  # methods of HistoryBuffer that pickles refer to


def _statistic(owner: Any, name: str) -> Any:
    """Replaces `builtins.getattr` in checkpoints; allows only some methods of HistoryBuffer."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"it uses the attribute {name!r} of {owner!r}")
    return getattr(owner, name)


_RESUME_GLOBALS: list[Any] = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    _reconstruct,
    scalar,
    (_statistic, "builtins.getattr"),
]


def seal(checkpoint: Path) -> None:
    """Writes the checksum of a checkpoint to `<checkpoint>.sha256`."""
    write_atomic(_seal_path(checkpoint), file_hash(checkpoint) + "\n")


def is_sealed(checkpoint: Path) -> bool:
    """Whether the file exists and its SHA-256 is the one in its seal."""
    seal_file = _seal_path(checkpoint)
    return (
        checkpoint.is_file()
        and seal_file.is_file()
        and seal_file.read_text().strip() == file_hash(checkpoint)
    )


def _seal_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".sha256")


def drop_orphan_seals(work_dir: Path) -> None:
    """Removes the seals of checkpoints that mmengine has deleted."""
    for seal_file in work_dir.glob("*.pth.sha256"):
        if not seal_file.with_suffix("").exists():
            seal_file.unlink(missing_ok=True)


def latest_sealed(work_dir: str | Path) -> Path | None:
    """The newest checkpoint in `work_dir` that matches its seal; None if there is none.

    A file that was not completely written is skipped: it has no seal, or a seal of another content.
    """
    files = sorted(Path(work_dir).glob("*.pth"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return next((p for p in files if is_sealed(p)), None)


def trust_work_dir(work_dir: Path) -> None:
    """Allows this process to resume from checkpoints with a seal directly in `work_dir`."""
    _trusted_work_dirs.add(work_dir.resolve())


def load_weights(path: str | Path, map_location: Any = "cpu") -> Any:
    """The content of a checkpoint, tensors and plain containers only; see `read_checkpoint`."""
    return read_checkpoint(path, "the checkpoint", map_location=map_location)


def load_from_sealed(filename: str, map_location: Any = "cpu") -> Any:
    """The loader that mmengine calls for "kdep-resume://<path>", a checkpoint with a seal.

    Raises:
        KdepError: the file is outside the trusted work dirs, or does not match its seal.
    """
    path = Path(filename.removeprefix(RESUME))
    if path.resolve().parent not in _trusted_work_dirs:
        raise KdepError(
            f"the file to resume from, {path}, is outside the work dir of this run",
            expected="a checkpoint that this stage wrote in its own directory",
            fix="to load other weights, use init_cfg or load_from, which read only tensors",
        )
    if not is_sealed(path):
        raise KdepError(
            f"the checkpoint {path} has no checksum file ({_seal_path(path).name}), or its content "
            "does not match it, so the stage cannot resume from it",
            fix="move it to another folder; the stage then resumes from an older checkpoint or "
            "starts again",
        )
    with torch.serialization.safe_globals(_RESUME_GLOBALS):
        return load_weights(path, map_location)


def load_from_tensors(filename: str, map_location: Any = None) -> Any:
    """The loader that mmengine calls for all other local paths; see `load_weights`."""
    return load_weights(filename, map_location)


def register_loaders() -> None:
    """Registers both loaders in mmengine, in place of its loader of local files. Idempotent."""
    CheckpointLoader.register_scheme("", load_from_tensors, force=True)
    CheckpointLoader.register_scheme(RESUME, load_from_sealed, force=True)

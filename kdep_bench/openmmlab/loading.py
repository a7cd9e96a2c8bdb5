"""Loads checkpoints, always with `weights_only=True`: tensors and plain containers only.

mmengine's resume files also contain HistoryBuffer objects with numpy arrays. For resume files of
this run these classes are allowed, and `getattr` of HistoryBuffer's statistics only; no other code
can run from a file. Such a file must be in the work dir of this process's Runner, and its SHA-256
must equal the seal that `SealHook` wrote next to it. A seal proves that the file is complete and
unchanged; it is not a signature.
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

RESUME = "kdep-resume://"  # scheme of a sealed resume file, followed by its path

_roots: set[Path] = set()  # work dirs with sealed files from which this process may resume
_STATISTICS = ("min", "max", "current", "mean")  # HistoryBuffer's, which pickle names by getattr


def _statistic(owner: Any, name: str) -> Any:
    """Replaces `builtins.getattr` in resume files: HistoryBuffer's statistics only."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"it asks for {name!r} of {owner!r}")
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
    """Whether the file exists and its SHA-256 equals its seal."""
    mark = _seal_path(checkpoint)
    return (
        checkpoint.is_file()
        and mark.is_file()
        and mark.read_text().strip() == file_hash(checkpoint)
    )


def _seal_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".sha256")


def drop_orphan_seals(work_dir: Path) -> None:
    """Removes the seals of checkpoints that mmengine has deleted."""
    for mark in work_dir.glob("*.pth.sha256"):
        if not mark.with_suffix("").exists():
            mark.unlink(missing_ok=True)


def latest_sealed(work_dir: str | Path) -> Path | None:
    """The newest complete resume file in `work_dir`; None if there is none.

    A file whose writing was interrupted has no matching seal and is skipped.
    """
    files = sorted(Path(work_dir).glob("*.pth"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return next((p for p in files if is_sealed(p)), None)


def trust_work_dir(work_dir: Path) -> None:
    """Lets this process resume from sealed files directly in `work_dir`."""
    _roots.add(work_dir.resolve())


def load_weights(path: str | Path, map_location: Any = "cpu") -> Any:
    """The content of a checkpoint, tensors and plain containers only; see `read_checkpoint`."""
    return read_checkpoint(path, "the checkpoint", map_location=map_location)


def load_from_sealed(filename: str, map_location: Any = "cpu") -> Any:
    """mmengine's loader for `kdep-resume://<path>`.

    Raises:
        KdepError: a file outside the trusted work dirs, or one that does not match its seal.
    """
    path = Path(filename.removeprefix(RESUME))
    if path.resolve().parent not in _roots:
        raise KdepError(
            f"the file to resume from, {path}, is outside the work dir of this run",
            expected="a checkpoint that this stage wrote in its own directory",
            fix="load other weights with init_cfg or load_from, which read only tensors",
        )
    if not is_sealed(path):
        raise KdepError(
            f"the checksum of the checkpoint {path} is wrong, so the stage cannot resume from it",
            fix="move it to another folder; the stage then resumes from an older checkpoint or "
            "starts again",
        )
    with torch.serialization.safe_globals(_RESUME_GLOBALS):
        return load_weights(path, map_location)


def load_from_tensors(filename: str, map_location: Any = None) -> Any:
    """mmengine's loader for all other local paths; see `load_weights`."""
    return load_weights(filename, map_location)


def register_loaders() -> None:
    """Registers both loaders in mmengine, replacing its loader of local files. Idempotent."""
    CheckpointLoader.register_scheme("", load_from_tensors, force=True)
    CheckpointLoader.register_scheme(RESUME, load_from_sealed, force=True)

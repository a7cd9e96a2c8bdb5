"""Loading of checkpoints: tensors and plain containers alone, always with `weights_only=True`.

mmengine's resume files hold one thing more, HistoryBuffer objects with their numpy arrays. For
files of our own these few names are allowed, and `getattr` only as far as HistoryBuffer's own
statistics; no other code can run from any file. Such a file must lie in the work dir of this
process's Runner, and its SHA-256 equal the seal that `SealHook` wrote beside it: a seal proves that
the file is whole and the one that was saved; it is no signature.
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

RESUME = "kdep-resume://"  # the scheme of a sealed resume file: this prefix, then its path

_roots: set[Path] = set()  # work dirs from whose sealed files this process may resume
_STATISTICS = ("min", "max", "current", "mean")  # HistoryBuffer's, which pickle names by getattr


def _statistic(owner: Any, name: str) -> Any:
    """What `builtins.getattr` means in a resume file."""
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
    """Writes `<checkpoint>.sha256`."""
    write_atomic(_seal_path(checkpoint), file_hash(checkpoint) + "\n")


def is_sealed(checkpoint: Path) -> bool:
    """Whether the file is there and equal to its seal."""
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
    """The newest whole resume file in `work_dir`, None if there is none.

    One that was cut while it was written has no matching seal and is passed over.
    """
    files = sorted(Path(work_dir).glob("*.pth"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return next((p for p in files if is_sealed(p)), None)


def trust_work_dir(work_dir: Path) -> None:
    """Lets this process resume from sealed files directly in `work_dir`."""
    _roots.add(work_dir.resolve())


def load_weights(path: str | Path, map_location: Any = "cpu") -> Any:
    """The content of a checkpoint: tensors and plain containers alone; see `read_checkpoint`."""
    return read_checkpoint(path, "the checkpoint", map_location=map_location)


def load_from_sealed(filename: str, map_location: Any = "cpu") -> Any:
    """Loader of the `kdep-resume://` scheme; raises KdepError for a file that is not ours."""
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
            fix="delete it; the stage then resumes from an older checkpoint or starts again",
        )
    with torch.serialization.safe_globals(_RESUME_GLOBALS):
        return load_weights(path, map_location)


def load_from_tensors(filename: str, map_location: Any = None) -> Any:
    """Loader of every other local path: `load_weights`."""
    return load_weights(filename, map_location)


def register_loaders() -> None:
    """Puts both loaders into mmengine, in place of its loader of local files. Idempotent."""
    CheckpointLoader.register_scheme("", load_from_tensors, force=True)
    CheckpointLoader.register_scheme(RESUME, load_from_sealed, force=True)

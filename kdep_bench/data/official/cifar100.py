"""CIFAR-100, Python version: cifar-100-python/{train,test,meta}, pickles of Python 2.

A pickle can run code when it is loaded. The unpickler here creates only arrays and built-in types.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive
from kdep_bench.data.official.base import (
    OfficialSet,
    how_to_unpack_again,
    need_dir,
    need_file,
)
from kdep_bench.errors import KdepError

FOLDER = "cifar-100-python"
_UNPACK_AGAIN = how_to_unpack_again("cifar100")
_SOURCE = "mmpretrain 1.2.0 and torchvision 0.29.1, datasets/cifar.py"
# (module, name) of the functions and classes that the pickles of the official archive use.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can create numpy arrays, but no other classes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it requires {module}.{name}, which is not allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a CIFAR pickle, which contains one dict.

    Raises:
        KdepError: the file is damaged, or contains other objects than arrays and built-in types.
    """
    need_file(path, "a pickle of CIFAR-100")
    try:
        with path.open("rb") as f:
            table = _ArrayUnpickler(f, encoding="latin1").load()
    except Exception as e:  # a damaged pickle can raise any exception
        raise KdepError(
            f"the CIFAR file {path} cannot be read ({type(e).__name__}: {e})",
            expected="a pickle of one dict of arrays and lists, as the official archive has it",
            fix=_UNPACK_AGAIN,
        ) from None
    if not isinstance(table, dict):
        raise KdepError(
            f"the CIFAR file {path} contains a {type(table).__name__}",
            expected="a dict",
            fix=_UNPACK_AGAIN,
        )
    return table


def read_split(folder: Path, split: str) -> tuple[np.ndarray, list[int], list[str]]:
    """Reads a split.

    Args:
        folder: the set's folder.
        split: "train" or "test".

    Returns:
        images [N, 32, 32, 3] uint8 RGB, N fine labels, names of the 100 fine classes.

    Raises:
        KdepError: a damaged file, or arrays of another shape or length.
    """
    base = need_dir(folder / FOLDER, "the folder of the CIFAR-100 archive")
    table, meta = read_pickle(base / split), read_pickle(base / "meta")
    names = meta.get("fine_label_names")
    data, labels = np.asarray(table.get("data")), table.get("fine_labels")
    if not isinstance(names, list) or data.dtype != np.uint8 or data.ndim != 2:
        raise KdepError(
            f"the files {base / split} and meta contain data {data.dtype} {data.shape} and "
            f"{type(names).__name__} fine_label_names",
            expected="data uint8 [N, 3072] and a list of names (CIFAR-100, not CIFAR-10)",
            fix=_UNPACK_AGAIN,
        )
    if data.shape[1] != 3 * 32 * 32 or not isinstance(labels, list) or len(labels) != len(data):
        raise KdepError(
            f"the file {base / split} has {data.shape[1]} values per image and "
            f"{(len(labels) if isinstance(labels, list) else 'no')} fine_labels for {len(data)} "
            "images",
            expected="3072 values and one label per image",
            fix=_UNPACK_AGAIN,
        )
    if wrong := [v for v in labels if not 0 <= v < len(names)]:
        raise KdepError(
            f"the file {base / split} has the label {wrong[0]}",
            expected=f"0..{len(names) - 1}",
            fix=_UNPACK_AGAIN,
        )
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, names


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Reads both splits in full and returns counts; each is one file, so `n_decoded` is ignored."""
    counts = {}
    for split in ("train", "test"):
        images, _, names = read_split(folder, split)
        counts[f"{split}_images"] = len(images)
        counts["classes"] = len(names)
    return counts


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 40 training and 20 test images with all 100 class names, in protocol-2 pickles."""
    base = folder / FOLDER
    base.mkdir(parents=True)
    fine = [f"fine_{i:02d}" for i in range(100)]
    meta = {"fine_label_names": fine, "coarse_label_names": [f"coarse_{i}" for i in range(20)]}
    (base / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    for split, count in (("train", 40), ("test", 20)):
        images = np.stack([draw.noise_image(rng, (32, 32)) for _ in range(count)])
        labels = [int(i) for i in rng.integers(0, 100, count)]
        table = {
            "data": images.transpose(0, 3, 1, 2).reshape(count, 3072),
            "fine_labels": labels,
            "coarse_labels": [i // 5 for i in labels],  # 20 coarse classes of 5 fine classes
            "filenames": [f"tiny_{split}_{i:04d}.png" for i in range(count)],
            "batch_label": f"{split}ing batch 1 of 1",
        }
        (base / split).write_bytes(pickle.dumps(table, protocol=2))


SET = OfficialSet(
    name="cifar100",
    title="CIFAR-100",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated; cite Krizhevsky 2009",
    archives=(
        Archive(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "eb9058c3a382ffc7106e4002c42a8d85",
            _SOURCE,
        ),
    ),
    counts={"train_images": 50000, "test_images": 10000, "classes": 100},
    training_counts=("train_images",),
    verify=verify,
    tiny=tiny,
)

"""Functions that the tasks on official data sets share: checks, image counts, data loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.data.official.base import get_set, verify
from kdep_bench.devices import compute_device
from kdep_bench.transfer import mm_config
from kdep_bench.transfer.counts import SplitCount

N_DECODED = 2  # number of images per split that a task decodes before training


def verified_counts(name: str, data_root: Path) -> dict[str, int]:
    """Checks the format of a set. Stage `prepare` has compared the counts with the release.

    Returns:
        the counts of the set, for example {"train_images": 50000, ...}.
    """
    return verify(get_set(name), Path(data_root), n_decoded=N_DECODED, check_counts=False)


def split_counts(
    name: str,
    data_root: Path,
    train: Sequence[str],
    test: Sequence[str],
) -> list[SplitCount]:
    """Numbers of training and test images of a set.

    Args:
        name: name of the set.
        data_root: folder of the prepared data.
        train, test: splits whose images are used for training and for the test.
    """
    counts, folder = verified_counts(name, data_root), Path(data_root) / name
    return [
        SplitCount("train", "+".join(train), sum(counts[f"{k}_images"] for k in train), folder),
        SplitCount("test", "+".join(test), sum(counts[f"{k}_images"] for k in test), folder),
    ]


def loader(
    recipe: Mapping[str, Any], dataset: Mapping[str, Any], *, train: bool, infinite: bool = False
) -> dict[str, Any]:
    """The config of a data loader, with the number of worker processes that the recipe states."""
    batch = int(recipe["batch" if train else "test_batch"])
    cfg = mm_config.loader(dataset, batch, train=train, infinite=infinite)
    workers = int(recipe["workers"])
    cfg.update(num_workers=workers, persistent_workers=workers > 0)
    if compute_device().type == "cuda":
        cfg.update(pin_memory=True)
    return cfg

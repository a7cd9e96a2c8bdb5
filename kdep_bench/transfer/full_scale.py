"""Common functions of the tasks on official data sets: checks, number of worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.data.official.base import get_set, verify
from kdep_bench.devices import compute_device
from kdep_bench.transfer import mm_config
from kdep_bench.transfer.counts import SplitCount

CHECKED = 2  # images of each split that a task decodes before it trains


def check_set(name: str, data_root: Path) -> dict[str, int]:
    """Checks the set's format; counts were compared with the release by the stage `prepare`.

    Returns:
        What the set's `verify` counts, for example {"train_images": 50000, ...}.
    """
    return verify(get_set(name), Path(data_root), decode=CHECKED, whole=False)


def split_counts(
    name: str,
    data_root: Path,
    train: Sequence[str],
    test: Sequence[str],
) -> list[SplitCount]:
    """Images of the training and the test data: the sums of the named counts of the set."""
    counts, place = check_set(name, data_root), Path(data_root) / name
    return [
        SplitCount("train", "+".join(train), sum(counts[f"{k}_images"] for k in train), place),
        SplitCount("test", "+".join(test), sum(counts[f"{k}_images"] for k in test), place),
    ]


def loader(
    recipe: Mapping[str, Any], dataset: Mapping[str, Any], *, train: bool, infinite: bool = False
) -> dict[str, Any]:
    """`base.loader` with the recipe's worker processes (a process)."""
    batch = int(recipe["batch" if train else "test_batch"])
    cfg = mm_config.loader(dataset, batch, train=train, infinite=infinite)
    workers = int(recipe["workers"])
    cfg.update(num_workers=workers, persistent_workers=workers > 0)
    if compute_device().type == "cuda":
        cfg.update(pin_memory=True)
    return cfg

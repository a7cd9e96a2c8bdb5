"""What the full-scale tasks on official data sets share: global batches, workers, SyncBN."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.official.base import get_set, verify
from kdep_bench.errors import KdepError
from kdep_bench.transfer import base

CHECKED = 2  # images of each split that a task decodes before it trains


def check_set(name: str, data_root: Path) -> None:
    """The set as its format asks; counts were compared with the release by the stage `prepare`."""
    verify(get_set(name), Path(data_root), decode=CHECKED, whole=False)


def per_process(batch: int, what: str) -> int:
    """The recipe's *global* batch divided over the processes; KdepError where it does not go."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if batch % world:
        raise KdepError(
            f"the {what} of {batch} images cannot be divided over {world} processes",
            "a multiple of the number of processes",
            "start another number of processes",
        )
    return batch // world


def loader(
    recipe: Mapping[str, Any], dataset: Mapping[str, Any], *, train: bool, infinite: bool = False
) -> dict[str, Any]:
    """`base.loader` with the recipe's worker processes and its share of the global batch."""
    batch = per_process(int(recipe["batch"]), "batch") if train else int(recipe["test_batch"])
    cfg = base.loader(dataset, batch, train=train, infinite=infinite)
    workers = int(recipe["workers"])
    cfg.update(num_workers=workers, persistent_workers=workers > 0)
    return cfg


def settle_norm(cfg: dict[str, Any], backbone: dict[str, Any], sync: bool) -> dict[str, Any]:
    """SyncBN over several GPUs where the recipe asks for it, BN everywhere else.

    torch's SyncBatchNorm has no CPU version; one process has nothing to synchronise over.
    """
    import torch

    if not (sync and base.is_distributed() and torch.cuda.is_available()):
        return base.without_sync_bn(cfg)
    backbone["norm_cfg"] = dict(type="SyncBN", requires_grad=True)
    return cfg

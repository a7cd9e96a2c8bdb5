"""A transfer over several processes: what one process would train, dealt out to the ranks.

The number of processes is no part of a stage's identity, so it must not change what is trained:

* the recipe's `batch` is the batch of all ranks together; each takes its part, and a batch that
  does not fall into equal parts is refused;
* the ranks read together, step by step, the images that one process would read: the samplers deal
  one seeded order out in turn, and an epoch has as many steps (`DealtBatches`);
* BatchNorm statistics are those of the whole batch (SyncBN);
* weights are initialised from the seed itself; each rank draws its augmentations and samples of
  RoIs from a seed of its own (mmengine's `diff_rank_seed`: seed + rank);
* gradients and logged losses are means over the ranks. A loss that divides by what a rank happens
  to hold (a detector's by its RoIs) is therefore a mean of such quotients, as everywhere in mmdet;
* every image of the test split is scored once: ranks are padded to equal lengths, and what is
  surplus is dropped before the metric is computed, in rank 0.

Two runs of different numbers of processes hence agree but for their augmentations and rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.pretrain.parallel import mean_over_ranks, share_batch_norm

COLLECTED = ".ranks"  # folder of the work dir through which the ranks hand their test results


def per_process(batch: int, what: str) -> int:
    """The recipe's *global* batch divided over the processes; KdepError where it does not go."""
    ranks = openmmlab.planned_ranks()
    if batch % ranks:
        raise KdepError(
            f"the {what} of {batch} images cannot be divided equally among {ranks} processes",
            expected="a multiple of the number of processes",
            fix="change the number of processes",
        )
    return batch // ranks


@DATA_SAMPLERS.register_module(name="KdepDealtBatches")
class DealtBatches(Sampler):
    """The whole batches of an epoch in one process's order, dealt out to the ranks in turn.

    The order is that of mmengine's DefaultSampler at the same seed. That class alone would give a
    rank another number of steps than one process takes: it pads the epoch to the ranks first and
    each rank then drops its own last batch.

    Args:
        batch: images per step, of all ranks together.
    """

    def __init__(self, dataset: Sized, batch: int, seed: int, shuffle: bool = True) -> None:
        self.rank, self.ranks = get_dist_info()
        self.images, self.shuffle, self.seed, self.epoch = len(dataset), shuffle, seed, 0
        self.dealt = self.images // batch * batch

    def __iter__(self) -> Iterator[int]:
        order = range(self.images)
        if self.shuffle:
            drawn = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.images, generator=drawn).tolist()
        return iter(order[self.rank : self.dealt : self.ranks])

    def __len__(self) -> int:
        return self.dealt // self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Called by mmengine's DistSamplerSeedHook before each epoch."""
        self.epoch = epoch


class MeanLosses(Hook):
    """Averages the losses over all ranks, so that all ranks stop together (StopOnBadLoss)."""

    priority = "HIGHEST"

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if outputs:
            outputs.update(mean_over_ranks(outputs))


class WholeBatchNorm(Hook):
    """BatchNorm over all ranks' samples from the first step on; after initialisation, whose
    rules look at the classes of modules."""

    def before_train(self, runner: Any) -> None:
        share_batch_norm(unwrapped(runner))


def unwrapped(runner: Any) -> Any:
    """The Runner's model out of its DDP wrapper."""
    return getattr(runner.model, "module", runner.model)


def split_over_ranks(cfg: Any, seed: int, task: str) -> list[Hook]:
    """Makes the config of one process that of one rank, in place; returns the hooks it needs.

    Changes nothing where there is one process.
    """
    if openmmlab.planned_ranks() == 1:
        return []
    train = cfg.train_dataloader
    whole = int(train.batch_size)
    train.batch_size = per_process(whole, f"batch of task {task}")
    train.sampler.seed = int(seed)
    if train.sampler.type == "DefaultSampler" and train.drop_last:
        train.sampler.update(type="KdepDealtBatches", batch=whole)
    cfg.randomness.diff_rank_seed = True
    # A backbone's last stage may have no part in a dense task's loss.
    cfg.find_unused_parameters = True
    if torch.cuda.is_available():
        cfg.sync_bn = "torch"  # mmengine converts the model, backbone included
        return [MeanLosses()]
    return [MeanLosses(), WholeBatchNorm()]  # torch's SyncBatchNorm has no CPU version


def set_collect_folder(runner: Any, folder: Path) -> None:
    """Sets where the ranks' test results meet: mmengine would make a folder in the working dir."""
    if openmmlab.planned_ranks() == 1:
        return
    for i, metric in enumerate(runner.test_loop.evaluator.metrics):
        if metric.collect_device == "cpu":
            metric.collect_dir = str(folder / COLLECTED / str(i))

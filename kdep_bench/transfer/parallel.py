"""Transfer training in several processes (ranks) that is equivalent to training in one process.

The number of processes is not part of the stage id, so it must not change the expected result:

* The recipe's `batch` is the batch size of all ranks together; it must be a multiple of the number
  of ranks.
* In each step the ranks together read the images that one process would read, and an epoch has the
  same number of steps (`DealtBatches`).
* BatchNorm statistics are computed over the batches of all ranks (SyncBN).
* Weights are initialised from the same seed. Augmentations and samples of RoIs are drawn with a
  different seed in each rank (mmengine's `diff_rank_seed`: seed + rank).
* Gradients and logged losses are means over the ranks. A loss that is divided by a number that
  depends on the rank (in a detector, its number of RoIs) is the mean of the ranks' values, as
  usual in mmdet.
* Every image of the test split is scored once: some images are repeated to give all ranks the same
  number, and the repetitions are removed before rank 0 computes the metric.

So runs with different numbers of processes differ only by augmentations and rounding.
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
from kdep_bench.pretrain.parallel import mean_over_ranks, share_batch_norm, world_size

RANKS_FOLDER = ".ranks"  # folder in the work dir for the test results of the ranks


def per_process(batch: int, what: str) -> int:
    """The batch size of one process.

    Args:
        batch: batch size of all processes together.
        what: name of the batch, for the error.

    Raises:
        KdepError: `batch` is not a multiple of the number of processes.
    """
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
    """A sampler that distributes the complete batches of an epoch over the ranks.

    The images are in the order of mmengine's DefaultSampler with the same seed; the ranks take them
    in turn (position i of the order goes to rank i mod number of ranks). DefaultSampler itself
    would change the number of steps: it first repeats images to give all ranks the same number, and
    then each rank drops its last incomplete batch.

    Args:
        dataset: the data set.
        batch: batch size of all ranks together.
        seed: random seed of the order.
        shuffle: whether to shuffle the images in each epoch.
    """

    def __init__(self, dataset: Sized, batch: int, seed: int, shuffle: bool = True) -> None:
        self.rank, self.ranks = get_dist_info()
        self.images, self.shuffle, self.seed, self.epoch = len(dataset), shuffle, seed, 0
        self.used = self.images // batch * batch

    def __iter__(self) -> Iterator[int]:
        order = range(self.images)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.images, generator=generator).tolist()
        return iter(order[self.rank : self.used : self.ranks])

    def __len__(self) -> int:
        return self.used // self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Called by mmengine's DistSamplerSeedHook before each epoch."""
        self.epoch = epoch


class MeanLosses(Hook):
    """Averages the losses over all ranks, so that StopOnBadLoss stops all of them in one step."""

    priority = "HIGHEST"

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if outputs:
            outputs.update(mean_over_ranks(outputs))


class WholeBatchNorm(Hook):
    """Converts BatchNorm to statistics over all ranks before the first step.

    An earlier conversion would change the initialisation of weights, which depends on the classes
    of the modules.
    """

    def before_train(self, runner: Any) -> None:
        share_batch_norm(unwrapped(runner))


def can_normalise(images: int) -> bool:
    """Whether BatchNorm can normalise one value per image and channel in training.

    A variance needs two images, in the batches of all ranks together. The answer is the same in
    every rank: a rank that left the layer out would train another function, and the other ranks
    would wait for its statistics.

    Args:
        images: number of images of this rank, at least 1 in every rank.
    """
    return images * world_size() > 1


def unwrapped(runner: Any) -> Any:
    """The Runner's model, without the DDP wrapper if there is one."""
    return getattr(runner.model, "module", runner.model)


def split_over_ranks(cfg: Any, seed: int, task: str) -> list[Hook]:
    """Changes the config of a training, in place, for one of several ranks.

    Nothing is changed if there is only one process.

    Args:
        cfg: the mmengine Config.
        seed: random seed of the training.
        task: name of the task, for errors.

    Returns:
        hooks for the Runner.

    Raises:
        KdepError: the batch size is not a multiple of the number of processes.
    """
    if openmmlab.planned_ranks() == 1:
        return []
    train = cfg.train_dataloader
    global_batch = int(train.batch_size)
    train.batch_size = per_process(global_batch, f"batch of task {task}")
    train.sampler.seed = int(seed)
    if train.sampler.type == "DefaultSampler" and train.drop_last:
        train.sampler.update(type="KdepDealtBatches", batch=global_batch)
    cfg.randomness.diff_rank_seed = True
    # In a dense task, layers at the end of the backbone may have no influence on the loss.
    cfg.find_unused_parameters = True
    if torch.cuda.is_available():
        cfg.sync_bn = "torch"  # mmengine converts the model, backbone included
        return [MeanLosses()]
    return [MeanLosses(), WholeBatchNorm()]  # torch's SyncBatchNorm has no CPU version


def set_collect_folder(runner: Any, folder: Path) -> None:
    """Sets the folder for the test results of the ranks (default: in the working directory)."""
    if openmmlab.planned_ranks() == 1:
        return
    for i, metric in enumerate(runner.test_loop.evaluator.metrics):
        if metric.collect_device == "cpu":
            metric.collect_dir = str(folder / RANKS_FOLDER / str(i))

"""The training loop over the fixed sequence of samples, which can resume at any step.

The samples of a step depend only on its number (pretrain/stream.py). So neither the number of
loader workers, nor how far they had read ahead when a run was interrupted, changes the training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor
from torch.utils.data import Sampler

from kdep_bench.devices import compute_device, loader_workers
from kdep_bench.pretrain.stream import FAULT, ViewStream


class Positions(Sampler[int]):
    """This rank's positions of the sequence, which is dealt out to the ranks in turn.

    mmengine's DefaultSampler gives the same, from a list of all positions: 4.6 GB of memory for the
    115 million samples of 90 epochs of ImageNet.

    Attributes:
        first: of this rank's positions, how many are passed over.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.ranks = get_dist_info()
        self.length, self.first = len(dataset), 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank + self.first * self.ranks, self.length, self.ranks))

    def __len__(self) -> int:
        return self.length // self.ranks


class SequenceLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop that resumes at sample `iter * batch_size` of each process.

    mmengine's own loop resumes by reading, and decoding, every batch before that again.
    """

    def run(self) -> Any:
        if self._iter > 0:
            batch = self.dataloader.batch_size
            assert isinstance(self.dataloader.sampler, Positions)
            assert batch is not None
            self.dataloader.sampler.first = self._iter * batch
            done = itertools.repeat(None, self._iter)  # which the base class passes over
            with torch.random.fork_rng(devices=[]):  # a loader draws a seed as it starts
                self.dataloader_iterator: Any = itertools.chain(done, iter(self.dataloader))
        return super().run()

    def run_iter(self, data_batch: Any) -> None:
        if FAULT in data_batch:
            raise data_batch[FAULT]
        super().run_iter(data_batch)


def workers_for(dataset: Mapping[str, Any], batch: int) -> int:
    """Worker processes for a loader of batches of `batch` samples of a ViewStream's config.

    None on a CPU: the views are memory maps, and workers would take the student's cores.
    """
    if compute_device().type == "cpu":
        return 0
    one = ViewStream(**{k: v for k, v in dataset.items() if k != "type"})[0]
    return loader_workers(batch * _bytes(one))


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_bytes(v) for v in value.values())
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0

"""The training loop over the fixed sequence of samples; it can resume at any step.

The samples of a step depend only on its number (pretrain/stream.py). Therefore training does not
depend on the number of loader workers, nor on the samples that they had read in advance when a run
was interrupted.
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
    """Sampler of this rank's positions in the sequence: every `ranks`-th, from `rank` on.

    mmengine's DefaultSampler yields the same positions, but from a list of all of them, which takes
    4.6 GB of memory for the 115 million samples of 90 epochs of ImageNet.

    Attributes:
        n_skipped: number of this rank's positions to skip, when a run resumes.
    """

    # mmengine passes a seed to every sampler; it is not used here.
    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.ranks = get_dist_info()
        self.length, self.n_skipped = len(dataset), 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank + self.n_skipped * self.ranks, self.length, self.ranks))

    def __len__(self) -> int:
        return self.length // self.ranks


class SequenceLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop that resumes at sample `iter * batch_size` of each process.

    mmengine's loop would read and decode all earlier batches again.
    """

    def run(self) -> Any:
        if self._iter > 0:
            batch = self.dataloader.batch_size
            assert isinstance(self.dataloader.sampler, Positions)
            assert batch is not None
            self.dataloader.sampler.n_skipped = self._iter * batch
            skipped = itertools.repeat(None, self._iter)  # the base class reads and ignores these
            # A loader draws a seed when it starts; the run's generator must not advance.
            with torch.random.fork_rng(devices=[]):
                self.dataloader_iterator: Any = itertools.chain(skipped, iter(self.dataloader))
        return super().run()

    def run_iter(self, data_batch: Any) -> None:
        if FAULT in data_batch:  # the error of a loader's worker, in place of a batch
            raise data_batch[FAULT]
        super().run_iter(data_batch)


def workers_for(dataset: Mapping[str, Any], batch: int) -> int:
    """Number of worker processes for a data loader.

    0 on a CPU: reading views from memory maps is cheap, and workers would use the student's cores.

    Args:
        dataset: config of a ViewStream.
        batch: samples per batch.
    """
    if compute_device().type == "cpu":
        return 0
    sample = ViewStream(**{k: v for k, v in dataset.items() if k != "type"})[0]
    return loader_workers(batch * _bytes(sample))


def _bytes(value: Any) -> int:
    """Size of the tensors in a nested mapping."""
    if isinstance(value, Mapping):
        return sum(_bytes(v) for v in value.values())
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0

"""The pre-training samples as one fixed sequence: a step's samples depend only on its number.

Position p of the sequence belongs to epoch p // N. Every epoch is a seeded permutation of the N
images of the data fraction, with view (epoch mod V) of each. Therefore a run that was interrupted
at step k and resumed reads exactly the samples of an uninterrupted one, and R ranks that divide a
global batch together read those of one process. With `together`, the V views of an image are
consecutive and a permutation takes V epochs, which contain the same samples in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from kdep_bench.data.fractions import read_labels, select_images
from kdep_bench.data.views import Views, open_views
from kdep_bench.errors import KdepError
from kdep_bench.features.cache_check import render_rows
from kdep_bench.features.cache_read import open_cache

FAULT = "fault"  # key of a KdepError, in place of a batch, that a loader's worker met


class TeacherSource:
    """The part of a batch that comes from one teacher; see ViewStream for the arguments."""

    def __init__(
        self,
        cache: str | Path | None = None,
        outputs: Sequence[str] = (),
        pool: str | Path | None = None,
        teacher_px: int = 0,
    ) -> None:
        self.cache = open_cache(Path(cache)) if cache else None
        self.outputs, self.teacher_px = list(outputs), teacher_px if pool else 0

    def batch(self, views: Views, rows: np.ndarray) -> dict[str, Any]:
        """`teacher`, `outputs` and `teacher_images` of these rows, as far as they are read."""
        batch: dict[str, Any] = {}
        if self.cache is not None and self.cache.shards:
            batch["teacher"] = torch.from_numpy(self.cache.rows(rows))
        if self.cache is not None and self.outputs:
            batch["outputs"] = {
                name: torch.from_numpy(self.cache.rows(rows, name)) for name in self.outputs
            }
        if self.teacher_px:
            batch["teacher_images"] = render_rows(views, rows, self.teacher_px)
        return batch


class ViewStream(Dataset):
    """`length` samples drawn in the order above, read batch-wise from memory maps.

    Args:
        views: folder of the `views` stage.
        length: number of samples in the whole run.
        share, share_seed: the random data fraction.
        share_labels: path of the pool's labels file where the share is drawn per class, read for
            that alone; None for a label-free share.
        seed: seed of the epoch permutations.
        cache: folder of the `cache` stage, or None.
        outputs: names of the cache's further arrays (logits, maps, tokens) to read as well.
        pool: folder of the `prepare` stage whose images a live teacher sees, rendered at
            `teacher_px` in the very crops of the views; None without a live teacher.
        labels: path of the pool's labels file, or None. Without it the set is label-free and
            asking for a label raises.
        together: the views of an image one after another.
        teachers: role -> `cache`, `outputs`, `pool` and `teacher_px` of each of several teachers,
            in place of these four.
    """

    def __init__(
        self,
        views: str | Path,
        length: int,
        share: float,
        share_seed: int,
        seed: int,
        cache: str | Path | None = None,
        labels: str | Path | None = None,
        share_labels: str | Path | None = None,
        together: bool = False,
        outputs: Sequence[str] = (),
        pool: str | Path | None = None,
        teacher_px: int = 0,
        teachers: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.together = together
        pools = [pool, *(source.get("pool") for source in (teachers or {}).values())]
        pool_used = next((source for source in pools if source), None)
        self.views = open_views(Path(views), Path(pool_used) if pool_used else None)
        self.source = TeacherSource(cache, outputs, pool, teacher_px)
        self.sources = {role: TeacherSource(**source) for role, source in (teachers or {}).items()}
        self.images = select_images(self.views.files, share, share_seed, share_labels)
        self.length, self.seed = length, seed
        self._labels = read_labels(Path(labels), self.views.files) if labels else None
        self._order: tuple[int, np.ndarray] = (-1, self.images)

    def __len__(self) -> int:
        return self.length

    def row(self, position: int) -> int:
        """The row (image-major) read at a position of the sequence."""
        side = self.views.views if self.together else 1
        epoch, k = divmod(position, len(self.images) * side)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
            self._order = (epoch, order)
        view = k % side if self.together else epoch % self.views.views
        return int(self._order[1][k // side]) * self.views.views + view

    def label(self, rows: np.ndarray) -> torch.Tensor:
        """[B] class numbers of rows; KdepError in a label-free set."""
        if self._labels is None:
            raise KdepError(
                "an objective read labels, but the method has labels_used=False",
                fix="set labels_used=True in the method's config",
            )
        return torch.from_numpy(self._labels[rows // self.views.views])

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> dict[str, Any]:
        """A whole batch: `images` [B, 3, px, px] uint8 and `rows` [B] int64.

        With a cache also `teacher` [B, Dt] float16 (where it holds the pooled feature) and
        `outputs` {name: [B, ...] float16}; for a
        live teacher `teacher_images` [B, 3, teacher_px, teacher_px] uint8; in a set with labels
        `labels` [B] int64. Of several teachers, `teachers` {role: these three}.

        In a loader's worker, a KdepError comes as {FAULT: error}: torch would make its sentence a
        traceback.
        """
        try:
            return self._batch(positions)
        except KdepError as e:
            if get_worker_info() is None:
                raise
            return {FAULT: e}

    def _batch(self, positions: list[int]) -> dict[str, Any]:
        rows = np.array([self.row(p) for p in positions], np.int64)
        batch: dict[str, Any] = {
            "images": torch.from_numpy(self.views.pixels[rows]).permute(0, 3, 1, 2),
            "rows": torch.from_numpy(rows),
        }
        batch |= self.source.batch(self.views, rows)
        if self.sources:
            batch["teachers"] = {k: s.batch(self.views, rows) for k, s in self.sources.items()}
        if self._labels is not None:
            batch["labels"] = self.label(rows)
        return batch


def already_batched(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collate function for a data set whose `__getitems__` returns a batch."""
    return batch

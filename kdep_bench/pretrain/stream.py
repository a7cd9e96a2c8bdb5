"""The pre-training samples as one fixed sequence: a step's samples depend only on its number.

Position p of the sequence belongs to epoch p // N, where N is the number of images of the data
fraction. Every epoch is a seeded permutation of these images, with view (epoch mod V) of each
image, where V is the number of views. Therefore a resumed run reads exactly the samples of an
uninterrupted run, and several ranks together read the samples of a single process. With `together`,
the V views of an image are consecutive: V epochs are one permutation of the images, and contain the
same samples in another order.
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

FAULT = "fault"  # key of a KdepError that a loader's worker returns in place of a batch


class TeacherInputs:
    """Reads one teacher's part of a batch: its cached outputs, or the images for it.

    The arguments are those of ViewStream.
    """

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
        """{name: values of these rows}, for the inputs that the objective reads.

        The names are `teacher`, `outputs` and `teacher_images`; see ViewStream.__getitems__.
        """
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
    """The samples in the order described at the top of this module, read from memory maps.

    Args:
        views: folder of the `views` stage.
        length: number of samples in the whole run.
        share, share_seed: size and seed of the random data fraction.
        share_labels: path of the labels file if the data fraction is drawn per class; these labels
            are read for nothing else. None if the fraction is drawn without labels.
        seed: seed of the epoch permutations.
        cache: folder of the `cache` stage, or None.
        outputs: names of the cache's outputs to read in addition to the pooled feature (logits,
            maps, tokens, class probabilities).
        pool: folder of the `prepare` stage with the images for a live teacher, or for an objective
            that reads the teacher's images. They are rendered at `teacher_px` pixels with the same
            crops as the views. None if nothing reads them.
        teacher_px: side of the teacher's images, in pixels.
        labels: path of the labels file; None for a label-free run, in which reading a label raises
            KdepError.
        together: whether the views of an image are consecutive.
        teachers: {role: {`cache`, `outputs`, `pool`, `teacher_px`}} for several teachers, in place
            of these four arguments.
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
        pools = [pool, *(args.get("pool") for args in (teachers or {}).values())]
        first_pool = next((folder for folder in pools if folder), None)
        self.views = open_views(Path(views), Path(first_pool) if first_pool else None)
        self.source = TeacherInputs(cache, outputs, pool, teacher_px)
        self.sources = {role: TeacherInputs(**args) for role, args in (teachers or {}).items()}
        self.images = select_images(self.views.files, share, share_seed, share_labels)
        self.length, self.seed = length, seed
        self._labels = read_labels(Path(labels), self.views.files) if labels else None
        # The latest permutation and its number: nearly all rows that are read need the same one.
        self._order: tuple[int, np.ndarray] = (-1, self.images)

    def __len__(self) -> int:
        return self.length

    def row(self, position: int) -> int:
        """The row number (image * views + view) of a position of the sequence."""
        adjacent = self.views.views if self.together else 1  # consecutive views of an image
        permutation, k = divmod(position, len(self.images) * adjacent)
        if self._order[0] != permutation:
            order = np.random.default_rng([self.seed, permutation]).permutation(self.images)
            self._order = (permutation, order)
        view = k % adjacent if self.together else permutation % self.views.views
        return int(self._order[1][k // adjacent]) * self.views.views + view

    def label(self, rows: np.ndarray) -> torch.Tensor:
        """Class numbers [B] of row numbers [B]; raises KdepError in a label-free run."""
        if self._labels is None:
            raise KdepError(
                "an objective read labels, but the method has labels_used=False",
                fix="set labels_used=True in the method's config",
            )
        return torch.from_numpy(self._labels[rows // self.views.views])

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A batch with the sample at one position."""
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> dict[str, Any]:
        """The batch of samples at the given positions.

        Returns:
            `images` [B, 3, px, px] uint8; `rows` [B] int64. With a cache: `teacher` [B, Dt]
            float16, the teacher's pooled feature if it is stored, and `outputs` {name: [B, ...]}.
            With `pool`: `teacher_images` [B, 3, teacher_px, teacher_px] uint8. With labels:
            `labels` [B] int64. With several teachers: `teachers` {role: {teacher, outputs,
            teacher_images}}. In a loader's worker, {FAULT: error} in place of a KdepError, because
            torch would print a traceback of the worker.

        Raises:
            KdepError: a file that cannot be read (in the main process only).
        """
        try:
            return self._batch(positions)
        except KdepError as e:
            if get_worker_info() is None:
                raise
            return {FAULT: e}

    def _batch(self, positions: list[int]) -> dict[str, Any]:
        """`__getitems__` without its handling of errors."""
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

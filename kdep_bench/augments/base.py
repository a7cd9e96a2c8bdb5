"""Base class of augmentations, which change a batch in the training step (mixup, crop, masks).

Configured as `augment=dict(type=..., ...)` of a method. The class declares which cached teacher
outputs still describe the changed images. A method that reads other outputs needs a live teacher
(`teacher_source="live"` in its config); this is checked at planning time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.registry import build, locate, type_path
from kdep_bench.teachers.base import TeacherOutput


@dataclass(frozen=True)
class Batch:
    """The images and teacher outputs of a batch that an Augment may change.

    Attributes:
        images: [B, 3, px, px] float32, 0 to 255: the student's images.
        teacher_images: {role: [B, 3, teacher_px, teacher_px] float32}, the same crops for each live
            teacher.
        stored: {role: outputs read from a cache}.
        targets: {role: [B, D]}, the aligned and transformed features of `stored`.
        extra: tensors that the Augment adds for the objective (`Context.extra`), one row per
            changed image.
    """

    images: Tensor
    teacher_images: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, TeacherOutput] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Draw:
    """Random numbers of one step, which depend on (seed, step) only.

    A resumed run therefore gets the numbers of an uninterrupted run. A sample gets the same numbers
    for every number of processes and micro-batches over which the batch is split.

    Args:
        seed: seed of the run.
        step: number of the optimiser step.
        size: number of samples in this part of the batch.
        rank, ranks: number of this process, and number of processes. Process r has the samples r,
            r + ranks, ... of the global batch.
        part, parts: number of this micro-batch in the process, and number of micro-batches.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        size: int,
        rank: int = 0,
        ranks: int = 1,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self._generator = np.random.default_rng([seed, step])
        self._batch_size = size * ranks * parts
        start = part * size
        self._samples = slice(rank + start * ranks, rank + (start + size) * ranks, ranks)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1), on the CPU."""
        numbers = self._generator.random((self._batch_size, *shape), np.float32)
        return torch.from_numpy(numbers[self._samples])

    def beta(self, a: float, b: float) -> float:
        """One number from the distribution Beta(a, b), equal for all samples of the batch."""
        return float(self._generator.beta(a, b))


class Augment(nn.Module, ABC):
    """An augmentation. Each subclass has its own file.

    Class attributes:
        keeps: cached teacher outputs (words of `objectives.base.NEEDS`) that still describe the
            changed images, or that `change` changes accordingly.
        keeps_labels: whether a label still describes its changed image.
        couples_samples: whether a changed sample depends on the other samples of the batch. Such an
            augmentation raises an error if a batch is split over processes or micro-batches.
        adds: names that `change` adds to `Batch.extra`.
        copies: number of consecutive images that `change` makes of every image of the batch. Labels
            and rows are repeated, and the passes of all networks are counted accordingly.
    """

    keeps: ClassVar[frozenset[str]] = frozenset()
    keeps_labels: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = False
    adds: ClassVar[frozenset[str]] = frozenset()
    copies: ClassVar[int] = 1

    @abstractmethod
    def change(self, batch: Batch, draw: Draw) -> Batch:
        """The changed batch; all random numbers must come from `draw`."""


def as_uint8(images: Tensor) -> Tensor:
    """Changed images in the format of a teacher's input: rounded and clipped to 0 to 255."""
    return images.round().clamp(0, 255).to(torch.uint8)


def augment_class(config: Mapping[str, Any]) -> type[Augment]:
    """The class of an augmentation's config; raises KdepError if it is not an Augment."""
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, Augment)):
        raise KdepError(
            f"the type {type_path(config['type'])} in `augment` is not an Augment",
            expected="a class of kdep_bench.augments",
            fix="correct `augment` in the method",
        )
    return kind


def build_augment(config: Mapping[str, Any]) -> Augment:
    """Builds the augmentation of a method's config; raises KdepError if it is not an Augment."""
    augment_class(config)
    return build(config)

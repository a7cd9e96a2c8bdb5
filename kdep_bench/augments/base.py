"""A change to the batch inside the pre-training step: mixup, another crop, masks, further views.

`method.augment = dict(type=..., ...)`. The class declares which stored teacher outputs still
describe the changed images; a method that reads any other needs a live teacher
(`teacher_source="live"` in its config), which the plan checks.
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
        images: [B, 3, px, px] float32, 0 to 255: what the student sees.
        teacher_images: by role of a live teacher, the same crops at its resolution, float32.
        stored: by role, outputs that were read from a cache.
        targets: [B, Ds] by role, the aligned and transformed features of `stored`.
        extra: what the Augment adds for the objective (`Context.extra`), each [B, ...].
    """

    images: Tensor
    teacher_images: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, TeacherOutput] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Draw:
    """Random numbers of one step, a function of (seed, step) alone.

    So a resumed run draws what an uninterrupted one does, and the samples of a batch that is split
    over processes and micro-batches get the numbers they would get in one.

    Args:
        size: samples in this part of the batch.
        rank, ranks: process and number of processes; the samples are dealt out to them in turn.
        part, parts: micro-batch of the process and number of micro-batches.
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
        self._whole = size * ranks * parts
        start = part * size
        self._samples = slice(rank + start * ranks, rank + (start + size) * ranks, ranks)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1), on the CPU."""
        numbers = self._generator.random((self._whole, *shape), np.float32)
        return torch.from_numpy(numbers[self._samples])

    def beta(self, a: float, b: float) -> float:
        """One number for the whole batch, Beta(a, b)."""
        return float(self._generator.beta(a, b))


class Augment(nn.Module, ABC):
    """One change, one file.

    Class attributes:
        keeps: teacher outputs (words of `objectives.base.NEEDS`) that, read from a cache, still
            describe the changed images.
        keeps_labels: whether a label still describes its image.
        couples_samples: whether a sample depends on the others of the batch; then refused where a
            batch is split over processes or micro-batches.
        adds: names that `change` adds to `Batch.extra`.
    """

    keeps: ClassVar[frozenset[str]] = frozenset()
    keeps_labels: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = False
    adds: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def change(self, batch: Batch, draw: Draw) -> Batch:
        """The changed batch. Randomness comes from `draw` alone.

        (`apply` is a method of every torch module.)
        """


def as_uint8(images: Tensor) -> Tensor:
    """Changed images as a teacher takes them: rounded, within 0 to 255."""
    return images.round().clamp(0, 255).to(torch.uint8)


def augment_class(config: Mapping[str, Any]) -> type[Augment]:
    """The class of an augmentation's config; KdepError for any other class."""
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, Augment)):
        raise KdepError(
            f"the type {type_path(config['type'])} in `augment` is not an Augment",
            expected="a class of kdep_bench.augments",
            fix="correct `augment` in the method",
        )
    return kind


def build_augment(config: Mapping[str, Any]) -> Augment:
    """The augmentation of a method's config."""
    augment_class(config)
    return build(config)

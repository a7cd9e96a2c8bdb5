"""Held-out pre-training images: several teachers are weighted on them, none is trained on them.

Whether an image is held out depends only on its number, so it is the same in every run, and the
images of a smaller fraction are also held out with a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from kdep_bench.bounds import BelowOne, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.cross_entropy import CrossEntropy
from kdep_bench.objectives.logit_kd import LogitKD

Numbers = TypeVar("Numbers", Tensor, np.ndarray)


def is_held_out(images: Numbers, fraction: float) -> Numbers:
    """[N] bool for image numbers [N] int64: whether an image is held out (Knuth's hash)."""
    return (images * 2654435761 % 2**32) < fraction * 2**32


@dataclass(frozen=True)
class HeldOutOutputs:
    """What the teachers of a method output for the held-out images.

    Attributes:
        logits: {role: [N, C] float64}, in the order of the roles.
        labels: [N] class numbers; None for an objective without labels.
        images: number of held-out images, whose views are the N samples or contain them.
    """

    logits: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    images: int


@dataclass(frozen=True)
class TeacherWeights:
    """The weights of a method's teachers, chosen on held-out images before training.

    Attributes:
        weights: {role: weight}; the weights of all roles add up to 1.
        report: numbers about the choice, which become outputs of the pre-training stage.
        note: a sentence for the record.
    """

    weights: Mapping[str, float]
    report: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def check_fraction(held_out: float, name: str) -> None:
    """Raises KdepError unless `held_out` is above 0 and below 1."""
    if not 0 < held_out < 1:
        raise KdepError(
            f"{name} has no validation split: held_out={held_out}",
            expected="a fraction of the images above 0 and below 1",
            fix="set `held_out` in the method's objective, for example 0.1",
        )


def trained_scale(ctx: Context, held_out: float, views: int) -> Tensor:
    """[B]: 0 for held-out samples, 1 / (1 - held_out) for the others.

    With this factor, the expected value of the loss is its mean over the samples trained on.
    """
    assert ctx.rows is not None
    return (~is_held_out(ctx.rows // views, held_out)).float() / (1 - held_out)


class HeldOutLogitKD(LogitKD):
    """LogitKD on the images that are not held out; for the assistants of a weighted ensemble.

    Only BatchNorm statistics depend on the held-out images.

    Args:
        held_out: fraction of the images that are held out.
        tau: temperature, a number or the config of a schedule.
        width, teacher_classes, views, epochs: set by the pre-training stage.
    """

    stage_arguments = LogitKD.stage_arguments | {"views"}
    skips_held_out = True

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        views: int,
        held_out: BelowOne,
        tau: Positive | Mapping[str, Any] = 4.0,
        epochs: float | None = None,
    ) -> None:
        super().__init__(width, teacher_classes, tau, epochs=epochs)
        check_fraction(held_out, "an assistant")
        self.held_out, self.views = float(held_out), views

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        scale = trained_scale(ctx, self.held_out, self.views)
        return {name: scale * term for name, term in super().terms(ctx).items()}


class HeldOutCrossEntropy(CrossEntropy):
    """CrossEntropy on the images that are not held out; for teachers that are compared on them.

    Only BatchNorm statistics depend on the held-out images.

    Args:
        held_out: fraction of the images that are held out.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        width, classes, views: set by the pre-training stage.
    """

    stage_arguments = CrossEntropy.stage_arguments | {"views"}
    skips_held_out = True

    def __init__(
        self,
        width: int,
        classes: int,
        views: int,
        held_out: BelowOne,
        label_smoothing: BelowOne = 0.0,
    ) -> None:
        super().__init__(width, classes, label_smoothing)
        check_fraction(held_out, "a teacher")
        self.held_out, self.views = float(held_out), views

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        scale = trained_scale(ctx, self.held_out, self.views)
        return {name: scale * term for name, term in super().terms(ctx).items()}

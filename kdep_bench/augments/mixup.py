"""Mixup of images and of cached teacher outputs (Zhang et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.bounds import Positive
from kdep_bench.teachers.base import TeacherOutput


class Mixup(Augment):
    """x <- w x + (1 - w) x', with x' from the batch in reverse order and w ~ Beta(a, a) per batch.

    Cached features, targets and probabilities are mixed with the same w; a live teacher gets the
    mixed images. Cached logits cannot be used, because the softmax of mixed logits is not the
    mixture of the probabilities. The reverse order and one w per batch are as in timm.

    Args:
        alpha: a; 0.2 is mixup's ImageNet value.
    """

    keeps = frozenset({"pooled", "target", "probabilities"})
    keeps_labels = False
    couples_samples = True

    def __init__(self, alpha: Positive = 0.2) -> None:
        super().__init__()
        self.alpha = float(alpha)

    def change(self, batch: Batch, draw: Draw) -> Batch:
        weight = draw.beta(self.alpha, self.alpha)
        return replace(
            batch,
            images=mix(batch.images, weight),
            teacher_images={k: mix(v, weight) for k, v in batch.teacher_images.items()},
            stored={k: mixed_output(v, weight) for k, v in batch.stored.items()},
            targets={k: mix(v, weight) for k, v in batch.targets.items()},
        )


def mix(value: Tensor, weight: float) -> Tensor:
    """weight * value + (1 - weight) * (value with the samples in reverse order)."""
    return weight * value + (1 - weight) * value.flip(0)


def mixed_output(out: TeacherOutput, weight: float) -> TeacherOutput:
    """A teacher output with mixed pooled feature and probabilities, without the other outputs."""
    probabilities = out.probabilities
    return TeacherOutput(
        mix(out.pooled, weight),
        None,
        probabilities=None if probabilities is None else mix(probabilities, weight),
    )

"""Mixup: every image is mixed with another of the batch, and so is what the teacher gave for it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.bounds import Positive
from kdep_bench.teachers.base import TeacherOutput


class Mixup(Augment):
    """x <- w x + (1 - w) x', x' the image at the mirrored place of the batch, w ~ Beta(a, a).

    A stored target is mixed with the same w (Zhang et al., ICLR 2018); the partner by flipping the
    batch and one w per batch are timm's. Not so the logits: the softmax of mixed logits is not the
    mixture of the probabilities. A live teacher sees the mixed images.

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
            images=mixed(batch.images, weight),
            teacher_images={k: mixed(v, weight) for k, v in batch.teacher_images.items()},
            stored={k: mixed_output(v, weight) for k, v in batch.stored.items()},
            targets={k: mixed(v, weight) for k, v in batch.targets.items()},
        )


def mixed(value: Tensor, weight: float) -> Tensor:
    """w value + (1 - w) value in reverse order of the samples."""
    return weight * value + (1 - weight) * value.flip(0)


def mixed_output(out: TeacherOutput, weight: float) -> TeacherOutput:
    """Pooled feature and probabilities mixed; outputs for which a mixture is wrong are removed."""
    p = out.probabilities
    return TeacherOutput(
        mixed(out.pooled, weight),
        None,
        probabilities=None if p is None else mixed(p, weight),
    )

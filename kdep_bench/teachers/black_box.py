"""Teachers that return class probabilities only, such as a service whose network is not public."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import Teacher, TeacherOutput, build_teacher


class ProbabilityTeacher(Teacher):
    """A teacher that returns class probabilities only; subclasses implement `predict_proba`.

    It has no feature (`width` is 0). `logits` of its output are the logarithms of the
    probabilities, so that their softmax is the probabilities.

    Class attributes:
        black_box: True: planning refuses methods that read more than class probabilities.
    """

    black_box = True
    has_logits, tap, width = True, "class probabilities only", 0

    def __init__(self, name: str, input_px: int) -> None:
        super().__init__(tuple(MEAN), tuple(STD))
        self.name, self.input_px = name, int(input_px)

    @abstractmethod
    def predict_proba(self, images: Tensor) -> Tensor:
        """[B, C] class probabilities of images [B, 3, px, px], uint8 RGB."""

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        raise KdepError(
            f"the teacher {self.name} returns class probabilities only",
            fix="choose a method that reads `probabilities`, or another teacher",
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        """The probabilities of `images` [B, 3, px, px] uint8, as logits.

        Raises:
            KdepError: not one probability per class, or a sum that is not 1.
        """
        p = self.predict_proba(images).float()
        if p.ndim != 2 or len(p) != len(images) or not bool(torch.isfinite(p).all()):
            raise KdepError(
                f"predict_proba of the teacher {self.name} returned values of shape "
                f"{tuple(p.shape)} for {len(images)} images",
                expected="finite class probabilities [images, classes]",
                fix="correct predict_proba",
            )
        if bool((p < 0).any()) or float((p.sum(1) - 1).abs().max()) > 1e-3:
            raise KdepError(
                f"predict_proba of the teacher {self.name} returned values that are no "
                "probabilities",
                expected="values of 0 or more with the sum 1 per image",
                fix="correct predict_proba; if it returns logits, apply a softmax",
            )
        return TeacherOutput(p.new_empty((len(p), 0)), p.clamp(min=1e-12).log())


class BlackBox(ProbabilityTeacher):
    """Another teacher, of which only the class probabilities are used.

    Args:
        name: name in records.
        teacher: config of the other teacher, which must have logits.
    """

    def __init__(self, name: str, teacher: Mapping[str, Any]) -> None:
        inside = build_teacher(teacher)
        super().__init__(name, inside.input_px)
        if not inside.has_logits:
            raise KdepError(
                f"the teacher {inside.name} inside the black box {name} has no logits",
                fix="choose a teacher with a classifier",
            )
        self.inside = inside

    def predict_proba(self, images: Tensor) -> Tensor:
        logits = self.inside(images).logits
        assert logits is not None
        return logits.softmax(1)

"""Pixel distillation: its formula in float64, the map and images that it reads, and its plans.

From the student's first feature map, a small network (SR, super-resolution) reconstructs the
larger image that the teacher receives. The formula is in the docstring of `ImageSuperResolution`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.image_super_resolution import (
    FeatureSuperResolution,
    ImageSuperResolution,
    SuperResolution,
    first_convolution,
)
from kdep_bench.teachers.base import Teacher, TeacherOutput
from tests.suite.test_suite_methods import plan

# Sides of the images. The student's first map has side 3: it is enlarged by 4 and cropped to 10.
PX, TEACHER_PX = 6, 10


class Student(nn.Module):
    """A first convolution (stem) of stride 2, and a layer that gets no gradient of this loss."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(channels), nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The last feature map."""
        return (self.last(self.norm(self.stem(x)).relu()),)


class StemTeacher(Teacher):
    """A teacher with another normalisation than the student's and a convolution as first layer."""

    has_logits, tap, width, input_px = False, "mean", 2, TEACHER_PX

    def __init__(self, name: str) -> None:
        super().__init__((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
        self.name = name
        generator = torch.Generator().manual_seed(7)
        self.stem = nn.Conv2d(3, 2, 3, 1, 0)
        for parameter in self.stem.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """The mean of the first layer's output, [B, 2]."""
        return TeacherOutput(self.stem(x_B3HW).mean((2, 3)), None)


TEACHER = dict(type=f"{__name__}.StemTeacher", name="stem")


def attach(objective: ImageSuperResolution, student: nn.Module) -> ImageSuperResolution:
    """The same objective, attached to the student, with fixed initial weights."""
    torch.manual_seed(0)
    objective.attach(student, lambda: nn.Identity())
    return objective


def context(images: Tensor, teacher: Tensor) -> Context:
    """A batch of the student's images [B, 3, PX, PX] and the teacher's [B, 3, TEACHER_PX, ...]."""
    pooled = torch.zeros(len(teacher), 5, dtype=teacher.dtype)
    output = TeacherOutput(pooled, None, images=teacher)
    return Context(pooled, pooled, teacher=output, images=images)


def enlarge_by_hand(enlarge: Any, first: np.ndarray, px: int) -> np.ndarray:
    """[B, 3, px, px]: the output of SR, pixel by pixel from its definition.

    A pixel is a linear function of the map at its position divided by the factor, then PReLU.

    Args:
        enlarge: the SuperResolution that gives the weights.
        first: the student's first map, [B, C, side, side].
        px: side of the image.
    """
    weight = enlarge.conv.weight.detach().numpy()[:, :, 0, 0]
    slope = enlarge.act.weight.detach().numpy()
    factor = enlarge.shuffle.upscale_factor
    image = np.empty((len(first), 3, px, px))
    for c in range(3):
        for y in range(px):
            for x in range(px):
                row = c * factor**2 + (y % factor) * factor + x % factor
                value = first[:, :, y // factor, x // factor] @ weight[row]
                image[:, c, y, x] = np.where(value > 0, value, slope[c] * value)
    return image


def test_the_loss_equals_the_formula_in_float64():
    student = Student()
    objective = attach(ImageSuperResolution(PX, TEACHER_PX), student)
    student.double()
    objective.double()
    x = torch.randn(2, 3, PX, PX, dtype=torch.float64)
    teacher_x = torch.randn(2, 3, TEACHER_PX, TEACHER_PX, dtype=torch.float64)
    terms = objective.terms(context(x, teacher_x))
    image = enlarge_by_hand(objective.enlarge, student.stem(x).detach().numpy(), TEACHER_PX)
    expected = np.abs(image - teacher_x.numpy()).mean((1, 2, 3))
    np.testing.assert_allclose(terms["image"].detach().numpy(), expected, rtol=1e-12)
    assert set(terms) == {"image"}


def test_a_first_convolution_that_keeps_all_pixels_gives_the_loss_0_at_equal_resolution():
    """Its 12 channels are the 2 x 2 x 3 values of a patch, which SR puts back in place."""
    student = Student(12)
    student.stem = nn.Conv2d(3, 12, 2, 2, bias=False)
    student.stem.weight.data = torch.eye(12).view(12, 3, 2, 2)
    objective = attach(ImageSuperResolution(8, 8), student)
    objective.enlarge.conv.weight.data = torch.eye(12).view(12, 12, 1, 1)  # type: ignore[union-attr]
    objective.enlarge.act.weight.data.fill_(1.0)  # type: ignore[union-attr]  # no activation
    x = torch.randn(2, 3, 8, 8)
    assert objective.terms(context(x, x))["image"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("side", "px", "factor"), [(3, 10, 4), (3, 12, 4), (5, 5, 1)])
def test_the_smallest_factor_is_used_and_surplus_pixels_are_cut(side: int, px: int, factor: int):
    enlarge = SuperResolution(2, side, px)
    assert enlarge.conv.out_channels == 3 * factor**2
    assert enlarge(torch.zeros(1, 2, side, side)).shape == (1, 3, px, px)


def test_only_the_first_convolution_and_the_enlargement_are_trained():
    student = Student()
    objective = attach(ImageSuperResolution(PX, TEACHER_PX), student)
    x, teacher_x = torch.randn(2, 3, PX, PX), torch.randn(2, 3, TEACHER_PX, TEACHER_PX)
    objective.terms(context(x, teacher_x))["image"].sum().backward()
    assert student.stem.weight.grad is not None
    assert bool(student.stem.weight.grad.any())
    assert student.last.weight.grad is None
    assert all(p.grad is not None for p in objective.parameters())
    assert set(objective.state_dict()) == {"enlarge.conv.weight", "enlarge.act.weight"}


def test_the_feature_term_applies_the_teacher_s_first_layer_with_the_teacher_s_normalisation():
    student = Student().eval()
    objective = attach(FeatureSuperResolution(PX, TEACHER_PX, TEACHER), student)
    assert isinstance(objective, FeatureSuperResolution)
    pixels = torch.randint(0, 256, (2, 3, TEACHER_PX, TEACHER_PX), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))  # of the student's images
    teacher_x, x = (pixels.float() - mean) / std, torch.randn(2, 3, PX, PX)
    teacher = StemTeacher("stem")
    layer = teacher.stem(teacher._normalised(pixels))
    torch.testing.assert_close(objective.first_layer(teacher_x), layer, rtol=1e-4, atol=1e-4)
    image = objective.enlarge(student.stem(x))
    teacher_normalised = (image * std + mean - teacher.mean) / teacher.std
    expected = (teacher.stem(teacher_normalised) - layer).abs().mean((1, 2, 3))
    terms = objective.terms(context(x, teacher_x))
    torch.testing.assert_close(terms["feature"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["image"], (image - teacher_x).abs().mean((1, 2, 3)))
    assert not any("teacher" in name for name in objective.state_dict())
    assert all(p.grad is None for p in objective._teacher[0].parameters())


def test_networks_and_resolutions_that_do_not_fit_are_refused():
    with pytest.raises(KdepError, match="the student has no convolution that reads an RGB image"):
        first_convolution(nn.Linear(3, 3), "the student")
    with pytest.raises(KdepError, match="images have 8 pixels and the student's 16"):
        ImageSuperResolution(16, 8)


# ---- plans ----


def stages(kind: str, *methods: Any, **changes: Any) -> dict[str, Any]:
    """{id: stage} of one kind, in the plan of these methods."""
    return {i: s for i, s in plan(*methods, **changes).stages.items() if s.kind == kind}


def test_pixel_distillation_reads_the_cache_of_logit_kd_and_the_pool():
    (cache,) = stages("cache", "pixel_distillation")
    assert set(stages("cache", "logit_kd")) == {cache}
    (pretrain,) = stages("pretrain", "pixel_distillation").values()
    (prepare,) = stages("prepare", "pixel_distillation")
    assert pretrain.needs["images"] == prepare
    assert "teacher" not in pretrain.spec  # the teacher is not live


def test_caches_of_two_teacher_resolutions_and_of_two_student_resolutions_are_different():
    def cache_of(teacher_px: int, student_px: int) -> str:
        """Id of the teacher cache for these image sizes."""
        student = dict(base="resnet18_w32", name="student", input_px=student_px)
        teacher = dict(base="efficientnet_lite0", input_px=teacher_px)
        changes: dict[str, Any] = dict(teacher=teacher, students=[student])
        (cache,) = stages("cache", "pixel_distillation", **changes)
        return cache

    caches = [cache_of(128, 64), cache_of(64, 64), cache_of(128, 32)]
    assert len(set(caches)) == 3
    assert cache_of(128, 64) == caches[0]


def test_the_assistant_is_trained_at_its_own_resolution():
    planned = plan("pixel_distillation_tas")
    views = {i: s.spec["px"] for i, s in planned.stages.items() if s.kind == "views"}
    assert sorted(views.values()) == [64, 128]
    for stage in planned.stages.values():
        if stage.kind == "cache":
            student = stage.spec["teacher"].get("student")
            # The assistant learns from the suite's teacher on views of 128 pixels. The student
            # reads outputs of the assistant for the crops of its own views.
            assert views[stage.needs["views"]] == (128 if student is None else 64)
            assert student is None or student["input_px"] == 128
        if stage.kind == "pretrain":
            assert views[stage.needs["views"]] == stage.spec["student"]["input_px"]


def test_a_teacher_with_smaller_images_is_refused_and_the_stated_fix_works():
    small = dict(base="efficientnet_lite0", input_px=32)
    with pytest.raises(KdepError, match="have 32 pixels and the student's 64") as raised:
        plan("pixel_distillation", teacher=small)
    assert "input_px=64" in str(raised.value.fix)
    plan("pixel_distillation", teacher=dict(base="efficientnet_lite0", input_px=64))
    assistant = dict(teacher=dict(student=dict(input_px=32)))
    with pytest.raises(KdepError, match="have 32 pixels"):
        plan(dict(base="pixel_distillation_tas", name="small", **assistant))


def test_crops_need_a_live_teacher_because_the_cached_images_are_not_cropped():
    crop = dict(type="kdep_bench.augments.crop.RandomCrop")
    cropped = dict(base="pixel_distillation", name="cropped", augment=crop)
    with pytest.raises(KdepError, match="teacher_images of the teacher from a cache"):
        plan(cropped)
    (pretrain,) = stages("pretrain", dict(cropped, teacher_source="live")).values()
    assert pretrain.spec["teacher"]["input_px"] == 128


def test_needs_without_the_teacher_s_images_are_refused():
    with pytest.raises(KdepError, match="reads teacher_images"):
        plan(dict(base="pixel_distillation", name="changed", needs=["logits"]))

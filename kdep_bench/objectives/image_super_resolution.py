"""Pixel distillation: reconstructs the teacher's larger image from the student's first layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.teachers.base import TeacherOutput, build_teacher


def first_convolution(network: nn.Module, label: str) -> nn.Conv2d:
    """The convolution that reads the image: the first of the network with three input channels.

    `label` names the network in the error.

    Raises:
        KdepError: there is none.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return module
    raise KdepError(
        f"{label} has no convolution that reads an RGB image",
        fix="choose another student or teacher, or another method than pixel distillation",
    )


class SuperResolution(nn.Module):
    """Turns a map into an RGB image: 1x1 convolution without bias, pixel shuffle, PReLU.

    A map of side n becomes an image of side k n, with the smallest k such that k n >= px; the
    surplus rows and columns at the end are cut off.

    Args:
        channels: channels of the map.
        side: height and width of the map.
        px: height and width of the image.
    """

    def __init__(self, channels: int, side: int, px: int) -> None:
        super().__init__()
        factor = math.ceil(px / side)
        self.px = px
        self.conv = nn.Conv2d(channels, 3 * factor**2, 1, bias=False)
        self.shuffle, self.act = nn.PixelShuffle(factor), nn.PReLU(3)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """[B, 3, px, px]."""
        return self.act(self.shuffle(self.conv(map_BCHW)))[:, :, : self.px, : self.px]


class ImageSuperResolution(Objective):
    """mean |SR(F) - x|: the teacher's image x, reconstructed from the student's first layer.

    F is the output of the student's first convolution, before its norm and activation, for the
    student's image; x is the same crop at the resolution of the teacher, normalised as the
    student's image is; SR is a SuperResolution, dropped at export. The mean is over channels and
    pixels. The loss trains only SR and the first convolution. That convolution runs twice per step.

    Source: input spatial representation distillation of Guo et al., TPAMI 2024 (arXiv 2112.09532);
    gyguo/PixelDistillation `lib/models/hrir.py` (SR1x1), `tools_1_ts/train_isrd_5runs.py`. There,
    the loss has the weight 10 for a student with half the teacher's resolution, and 50 for a
    quarter.

    Args:
        input_px, teacher_px: set by the pre-training stage.
    """

    needs = frozenset({"teacher_images"})
    stage_arguments = frozenset({"input_px", "teacher_px"})

    def __init__(self, input_px: int, teacher_px: int) -> None:
        super().__init__()
        if teacher_px < input_px:
            raise KdepError(
                f"the teacher's images have {teacher_px} pixels and the student's {input_px}",
                expected="images of the teacher as large as the student's, or larger",
                fix="raise input_px of the teacher, or choose another method",
            )
        self.input_px, self.teacher_px = int(input_px), int(teacher_px)
        self.enlarge: nn.Module = nn.Identity()
        # In a list, so that it is not registered twice.
        self._first_convolution: list[nn.Conv2d] = []

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        self._first_convolution = [first_convolution(student, "the student")]
        with torch.no_grad():
            first = self._first_convolution[0](torch.zeros(1, 3, self.input_px, self.input_px))
        self.enlarge = SuperResolution(first.shape[1], first.shape[2], self.teacher_px)

    def enlarged_images(self, ctx: Context) -> Tensor:
        """SR(F): [B, 3, px, px], the image reconstructed at the teacher's resolution.

        The student's first layer runs once more, because the student's forward pass does not return
        its output. It runs in float32, as objectives do.
        """
        assert ctx.images is not None
        return self.enlarge(self._first_convolution[0](ctx.images))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {"image": (self.enlarged_images(ctx) - teacher_images(ctx)).abs().mean((1, 2, 3))}


class FeatureSuperResolution(ImageSuperResolution):
    """mean |SR(F) - x| + mean |g(SR(F)) - g(x)|, with g the teacher's first convolution, frozen.

    Source: re-implementation of the feature super-resolution of arXiv 2112.09532v1 from its
    abstract. Leftover code of that version in gyguo/PixelDistillation (the last lines of
    `lib/models/hrir.py`) applies the teacher's first weights to the enlarged image. The distance
    and the equal weights were chosen in this project.

    Args:
        input_px, teacher_px, teacher_config: set by the pre-training stage.
    """

    needs = frozenset({"teacher_images"})
    stage_arguments = frozenset({"input_px", "teacher_px", "teacher_config"})

    def __init__(self, input_px: int, teacher_px: int, teacher_config: Mapping[str, Any]) -> None:
        super().__init__(input_px, teacher_px)
        # Building the teacher draws random numbers; the student's initial weights must not depend
        # on them.
        with torch.random.fork_rng(devices=[]):
            teacher = build_teacher(teacher_config)
        convolution = copy.deepcopy(first_convolution(teacher, f"the teacher {teacher.name}"))
        # In a list, so that it is neither trained nor stored in checkpoints.
        self._teacher = [convolution.requires_grad_(False)]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        self._scale = (std / teacher.std).flatten().tolist()
        self._shift = ((mean - teacher.mean) / teacher.std).flatten().tolist()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        image, target = self.enlarged_images(ctx), teacher_images(ctx)
        distance = (self.first_layer(image) - self.first_layer(target)).abs()
        return {
            "image": (image - target).abs().mean((1, 2, 3)),
            "feature": distance.mean((1, 2, 3)),
        }

    def first_layer(self, images_B3HW: Tensor) -> Tensor:
        """The teacher's first convolution of images that are normalised as the student's are."""
        channels = zip(images_B3HW.unbind(1), self._scale, self._shift, strict=True)
        x = torch.stack([channel * scale + shift for channel, scale, shift in channels], 1)
        self._teacher[0].to(x.device)
        return self._teacher[0](x)


def teacher_images(ctx: Context) -> Tensor:
    """[B, 3, px, px]: the teacher's images, normalised as the student's are."""
    assert isinstance(ctx.teacher, TeacherOutput)
    assert ctx.teacher.images is not None
    return ctx.teacher.images

"""The teacher's larger images in pre-training: the student's crops at the teacher's resolution.

A method may read these images (`teacher_images`), for example pixel distillation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import Tensor

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.data.views import open_views, read_rgb, render
from kdep_bench.features import cache
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.suite.config import resolve
from tests.pretrain.conftest import BUDGET, TEACHER, silent
from tests.pretrain.test_pretrain import pretrain

TEACHER_PX = 40  # side of the teacher's images; the student's have 32 pixels
LARGE = TEACHER | dict(input_px=TEACHER_PX)


class Recorder(Objective):
    """Records the batches that it receives."""

    needs = frozenset({"teacher_images"})
    seen: ClassVar[list[Context]] = []

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the batch; a term that reads only the student."""
        self.seen.append(ctx)
        return {"a": ctx.pre_activation.square().mean(1)}


RECORD: dict[str, Any] = dict(
    name="record", labels_used=False, transform=None, objective=dict(type=f"{__name__}.Recorder")
)


@pytest.fixture(scope="module")
def large_stages(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stages with a cache of a teacher whose images have 40 pixels."""
    out = tmp_path_factory.mktemp("large")
    cache.run({"teacher": LARGE, "batch": 16}, stages, out, silent)
    return {**stages, "cache": out, "images": stages["prepare"]}


@pytest.mark.parametrize("is_live", [False, True])
def test_the_teacher_s_images_are_the_student_s_crops_at_the_teacher_s_resolution(
    large_stages: dict[str, Path], tmp_path: Path, is_live: bool
):
    Recorder.seen.clear()
    not_read = {"align", "cache"} if is_live else {"align"}
    inputs = {k: v for k, v in large_stages.items() if k not in not_read}
    changes: dict[str, Any] = dict(teacher=LARGE) if is_live else {}
    outputs, _ = pretrain(tmp_path, inputs, RECORD, budget=BUDGET | dict(epochs=1), **changes)
    assert outputs["extra_forwards"] == (48 if is_live else 0)
    views = open_views(large_stages["views"], large_stages["prepare"])
    mean, std = (np.asarray(v).reshape(3, 1, 1) for v in (MEAN, STD))
    assert len(Recorder.seen) == 3  # 48 images in batches of 16
    for ctx in Recorder.seen:
        assert ctx.teacher is not None
        assert ctx.teacher.images is not None
        assert ctx.rows is not None
        assert ctx.teacher.images.shape == (16, 3, TEACHER_PX, TEACHER_PX)
        for row, image in zip(ctx.rows.tolist(), ctx.teacher.images, strict=True):
            source = read_rgb(views.root / views.files[row // 2])
            expected = render(source, views.box[row], bool(views.flip[row]), TEACHER_PX)
            pixels = image.numpy() * std + mean
            np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-3)


def test_methods_that_do_not_read_the_teacher_s_images_do_not_decode_them(
    large_stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        """Stands in for the function that decodes images."""
        raise AssertionError("images were decoded")

    monkeypatch.setattr("kdep_bench.pretrain.stream.render_rows", fail)
    logit_kd = resolve("method", "logit_kd")
    inputs = {k: v for k, v in large_stages.items() if k != "align"}
    pretrain(tmp_path, inputs, logit_kd, budget=BUDGET | dict(epochs=0.5))


@pytest.mark.parametrize("name", ["pixel_distillation", "pixel_distillation_tas"])
def test_the_loss_of_pixel_distillation_falls_and_the_teacher_is_not_saved(
    name: str, large_stages: dict[str, Path], tmp_path: Path
):
    method = resolve("method", name)
    method.pop("teacher", None)  # the cached teacher takes the place of the assistant
    inputs = {k: v for k, v in large_stages.items() if k != "align"}
    outputs, state = pretrain(tmp_path, inputs, method, budget=BUDGET | dict(epochs=8))
    curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    assert curve[-1] < 0.9 * curve[0]
    assert not any("_teacher" in k for k in state)
    # The first map has 4 channels and 16 x 16 positions. It is enlarged 3 times, to 48 pixels (at
    # least 40). So the 1x1 convolution has 3 x 3 pixels x 3 colours = 27 outputs; the activation
    # has 3 parameters.
    enlarge = [k for k in state if ".enlarge." in k]
    assert sum(state[k].numel() for k in enlarge) == 4 * 27 + 3

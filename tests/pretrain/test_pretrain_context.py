"""The values that an objective receives in a real run: arguments, batches and step numbers.

A batch is a `Context` (kdep_bench/objectives/base.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.pretrain import stage
from kdep_bench.pretrain.distiller import PRECISIONS, Distiller, NewNetwork
from tests.pretrain.conftest import BUDGET, IMAGES, STUDENT, WIDTH, silent
from tests.pretrain.test_pretrain import KDEP, pretrain, spec

R18: dict[str, Any] = {
    **STUDENT,
    "pyramid": dict(out_indices=(0, 1, 2, 3), channels=(4, 8, 16, 32), strides=(4, 8, 16, 32)),
}


class Recorder(Objective):
    """Records its construction arguments, its batches and its finished steps."""

    needs = frozenset({"target", "pooled", "maps"})
    stage_arguments = frozenset({"width", "teacher_width", "student_maps", "epochs"})
    seen: ClassVar[list[Context]] = []
    arguments: ClassVar[dict[str, Any]] = {}
    steps_done: ClassVar[list[int]] = []

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments.update(arguments)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the batch; two terms, of which only the first reads the target."""
        self.seen.append(ctx)
        assert ctx.target is not None
        return {
            "a": (ctx.pre_activation - ctx.target).square().mean(1),
            "b": ctx.pre_activation.square().mean(1),
        }

    def after_step(self) -> None:
        """Records the number of batches so far."""
        assert not torch.is_grad_enabled()
        self.steps_done.append(len(self.seen))


class WithoutMaps(Recorder):
    """Like `Recorder`, without maps."""

    needs = frozenset({"target", "pooled"})
    stage_arguments = Recorder.stage_arguments - {"student_maps"}


METHOD = KDEP | dict(objective=dict(type=f"{__name__}.WithoutMaps"))


def test_the_objective_receives_arguments_rows_and_step_numbers(
    stages: dict[str, Path], tmp_path: Path
):
    Recorder.seen.clear()
    outputs, _ = pretrain(tmp_path, stages, METHOD)
    assert Recorder.arguments["width"] == WIDTH
    assert Recorder.arguments["teacher_width"] == 1280  # of EfficientNet-Lite0
    assert Recorder.arguments["epochs"] == BUDGET["epochs"]
    steps = outputs["steps"]
    assert [ctx.step for ctx in Recorder.seen] == list(range(steps))
    assert {ctx.steps for ctx in Recorder.seen} == {steps}
    assert 0 <= Recorder.seen[0].progress < Recorder.seen[-1].progress < 1
    assert Recorder.steps_done == list(range(1, steps + 1))
    first_epoch = Recorder.seen[: IMAGES // 16]
    rows = torch.cat([ctx.rows for ctx in first_epoch if ctx.rows is not None])
    # The row of a view in the teacher cache is 2 * image + view. The first epoch uses view 0.
    assert sorted(rows.tolist()) == [2 * i for i in range(IMAGES)]
    teacher = Recorder.seen[0].teacher
    assert teacher is not None
    assert teacher.pooled.shape == (16, 1280)
    assert not teacher.pooled.requires_grad
    assert sum(outputs["terms"].values()) == pytest.approx(1)  # fractions of the loss
    assert set(outputs["terms"]) == {"a", "b"}


def test_the_recorded_counts_are_those_of_the_run(stages: dict[str, Path], tmp_path: Path):
    """16 of 48 images in batches of 5: 2 epochs are 32 samples, of which 6 steps use 30."""
    Recorder.seen.clear()
    budget = BUDGET | dict(epochs=2, batch=5)
    outputs, _ = pretrain(tmp_path, stages, METHOD, budget=budget, share=1 / 3, seed=2)
    n_samples = sum(len(ctx.pre_activation) for ctx in Recorder.seen)
    assert n_samples == outputs["images_seen"] == 30
    assert outputs["steps"] == len(Recorder.seen) == 6
    assert outputs["epochs"] == pytest.approx(30 / 16)
    assert (outputs["images"], outputs["views"]) == (16, 2)
    assert outputs["image_list"]["images"] == 16
    assert outputs["image_list"]["of"] == IMAGES
    assert (tmp_path / outputs["image_list"]["file"]).read_text().count("\n") == 16
    assert outputs["labels_used"] is False
    assert outputs["teacher_source"] == "cache"
    assert outputs["cache_check"]["rows"] > 0
    assert (outputs["extra_parameters"], outputs["extra_forwards"]) == (0, 0)
    assert outputs["processes"] == 1
    assert outputs["images_per_s"] == pytest.approx(30 / outputs["train_s"], rel=0.2)
    assert outputs["notes"] == [
        "pre-trained for 1.88 of 2 requested epochs, because only complete batches are trained"
    ]
    assert outputs["target_mean_square"] > 0
    assert outputs["std_ratio_after_transform"] >= 1
    last_step, _ = outputs["curves"]["pretrain_loss"][-1]
    assert last_step == 6
    assert not list((tmp_path / "run").glob("*.pth"))  # resume files are deleted


def test_reading_maps_changes_neither_the_initial_weights_nor_the_pooled_feature():
    x = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    results = []
    for maps in (False, True):
        torch.manual_seed(3)
        distiller = Distiller(R18, dict(type=f"{__name__}.WithoutTeacher"), maps=maps)
        distiller(x, mode="loss")
        results.append((distiller.backbone.state_dict(), Recorder.seen[-1]))
    (weights, without_maps), (weights_with_maps, with_maps) = results
    assert all(torch.equal(v, weights_with_maps[k]) for k, v in weights.items())
    assert torch.equal(without_maps.pre_activation, with_maps.pre_activation)
    assert not without_maps.maps
    shapes = {k: tuple(v.shape) for k, v in with_maps.maps.items()}
    assert shapes == {
        "s4": (4, 4, 8, 8),
        "s8": (4, 8, 4, 4),
        "s16": (4, 16, 2, 2),
        "s32": (4, 32, 1, 1),
    }
    torch.testing.assert_close(with_maps.maps["s32"].mean((2, 3)), with_maps.post_activation)
    assert with_maps.maps["s4"].requires_grad


class WithoutTeacher(Recorder):
    """An objective that reads no output of the teacher."""

    needs = frozenset()
    stage_arguments = frozenset()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the batch; a term that reads only the student."""
        self.seen.append(ctx)
        return {"a": ctx.pre_activation.sum(1)}


@pytest.mark.parametrize(
    ("pyramid", "message"),
    [
        ({}, "has no `pyramid`"),
        (dict(out_indices=(0, 1), channels=(4, 9), strides=(4, 8)), r"level s8 .*\(8, 4, 4\)"),
        (dict(out_indices=(0, 1), channels=(4, 8), strides=(8, 8)), "unique strides"),
    ],
)
def test_a_pyramid_that_does_not_describe_the_backbone_is_refused(
    pyramid: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        Distiller({**R18, "pyramid": pyramid}, dict(type=f"{__name__}.WithoutTeacher"), maps=True)


def test_an_objective_that_reads_undeclared_teacher_outputs_is_refused(
    stages: dict[str, Path], tmp_path: Path
):
    without_teacher = {k: v for k, v in stages.items() if k not in ("align", "cache")}
    with pytest.raises(
        KdepError,
        match="method kdep reads pooled, target of the teacher, but the method has no `needs`",
    ):
        stage.run(spec(METHOD), without_teacher, tmp_path, silent)


def test_a_peer_network_runs_in_the_precision_of_the_student():
    output_dtypes: list[torch.dtype] = []
    for name, dtype in PRECISIONS.items():
        peer = NewNetwork(STUDENT, dtype)
        conv = next(m for m in peer.modules() if isinstance(m, torch.nn.Conv2d))
        conv.register_forward_hook(lambda _m, _args, out: output_dtypes.append(out.dtype))
        before, after = peer(torch.randn(2, 3, 32, 32))
        assert before.dtype == after.dtype == torch.float32, name
    assert output_dtypes == list(PRECISIONS.values())

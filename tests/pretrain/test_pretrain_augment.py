"""Augmentations in the real pre-training stage, with stored and live teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.suite.config import load_config
from kdep_bench.transfer.export import strip
from tests.pretrain.conftest import BUDGET, TEACHER
from tests.pretrain.test_pretrain import KDEP, SUPERVISED, pretrain
from tests.pretrain.test_pretrain_context import R18

MIXUP = dict(type="kdep_bench.augments.mixup.Mixup", alpha=0.4)
CROP = dict(type="kdep_bench.augments.crop.RandomCrop")
SHORT = BUDGET | dict(epochs=1)


class AddNumbers(Augment):
    """Leaves the images as they are and adds a random number per sample."""

    keeps = frozenset({"pooled", "target"})  # stored outputs that still belong to the images

    def change(self, batch: Batch, draw: Draw) -> Batch:
        """The batch with `extra` = {"numbers": [B]}."""
        numbers = draw.uniform()
        return Batch(
            batch.images, batch.teacher_images, batch.stored, batch.targets, {"numbers": numbers}
        )


class TwoPasses(Objective):
    """Runs the student twice, the second time on mirrored images."""

    needs = frozenset({"target"})
    forwards = 1
    seen: ClassVar[list[Context]] = []

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """KDEP's loss, and the difference of the features of both passes."""
        assert ctx.student is not None
        assert ctx.images is not None
        assert ctx.target is not None
        self.seen.append(ctx)
        mirrored = ctx.student(ctx.images.flip(3))
        return {
            "first": (ctx.pre_activation - ctx.target).square().mean(1),
            "agree": (ctx.post_activation - mirrored.post_activation).square().mean(1),
        }


def curve(outputs: dict[str, Any]) -> np.ndarray:
    """The loss of every step."""
    return np.array(outputs["curves"]["pretrain_loss"])[:, 1]


def test_an_augmentation_that_does_not_change_the_images_gives_bitwise_equal_training(
    stages: dict[str, Path], tmp_path: Path
):
    plain, weights = pretrain(tmp_path / "a", stages, KDEP, budget=SHORT)
    add_numbers = KDEP | dict(augment=dict(type=f"{__name__}.AddNumbers"))
    augmented, augmented_weights = pretrain(tmp_path / "b", stages, add_numbers, budget=SHORT)
    np.testing.assert_array_equal(curve(plain), curve(augmented))
    assert weights.keys() == augmented_weights.keys()
    assert all(torch.equal(v, augmented_weights[k]) for k, v in weights.items())


def test_mixup_trains_from_the_cache_and_crops_with_a_live_teacher(
    stages: dict[str, Path], tmp_path: Path
):
    """Targets of mixed images are the mixed targets; a crop has no stored target."""
    plain, _ = pretrain(tmp_path / "p", stages, KDEP, budget=SHORT)
    mixed, state = pretrain(tmp_path / "m", stages, KDEP | dict(augment=MIXUP), budget=SHORT)
    assert mixed["teacher_source"] == "cache"
    assert mixed["extra_forwards"] == 0
    live = {**stages, "images": stages["prepare"]}
    with_crops = KDEP | dict(augment=CROP)
    cropped, _ = pretrain(tmp_path / "c", live, with_crops, budget=SHORT, teacher=TEACHER)
    assert cropped["teacher_source"] == "live"
    assert cropped["extra_forwards"] == cropped["images_seen"]
    assert not np.array_equal(curve(plain), curve(mixed))
    assert not np.array_equal(curve(plain), curve(cropped))
    assert {k.split(".")[0] for k in state} == {"backbone", "target"}


def test_hssakd_counts_the_passes_over_rotated_images_and_exports_a_plain_backbone(
    stages: dict[str, Path], tmp_path: Path
):
    live = {**stages, "images": stages["prepare"]}
    hssakd = load_config("method", "hssakd")
    outputs, state = pretrain(tmp_path, live, hssakd, budget=SHORT, teacher=TEACHER, student=R18)
    levels = {f"joint_{level}" for level in ("s4", "s8", "s16", "s32")}
    assert set(outputs["terms"]) == {"cross_entropy", "main", *levels}
    assert min(outputs["terms"].values()) > 0
    # Of four rotations per image: three more passes of the student, and four of the teacher.
    assert outputs["extra_forwards"] == 7 * outputs["images_seen"]
    exported, dropped = strip(state)
    assert set(exported) == set(build_backbone(R18).state_dict())
    assert set(dropped) == {"objective"}


def test_an_objective_can_run_the_student_again_and_read_values_of_the_augmentation(
    stages: dict[str, Path], tmp_path: Path
):
    TwoPasses.seen.clear()
    method = KDEP | dict(
        objective=dict(type=f"{__name__}.TwoPasses"), augment=dict(type=f"{__name__}.AddNumbers")
    )
    outputs, _ = pretrain(tmp_path, stages, method, budget=SHORT)
    assert outputs["extra_forwards"] == outputs["images_seen"]
    ctx = TwoPasses.seen[0]
    # The random numbers of seed 0, step 0 and 16 samples.
    assert ctx.extra["numbers"].tolist() == Draw(0, 0, 16).uniform().tolist()
    assert ctx.student is not None
    assert ctx.images is not None
    with torch.no_grad():
        assert ctx.student(ctx.images).post_activation.shape == ctx.post_activation.shape


def test_augmentations_that_invalidate_stored_outputs_or_labels_are_refused(
    stages: dict[str, Path], tmp_path: Path
):
    with pytest.raises(KdepError, match="reads target from a cache, which do not describe"):
        pretrain(tmp_path / "a", stages, KDEP | dict(augment=CROP))
    with pytest.raises(KdepError, match="reads labels, which do not describe"):
        pretrain(tmp_path / "b", stages, SUPERVISED | dict(augment=MIXUP))
    split_batch = BUDGET | {"accumulate": 2}
    with pytest.raises(KdepError, match="2 micro-batches"):
        pretrain(tmp_path / "c", stages, KDEP | dict(augment=MIXUP), budget=split_batch)


VIT: dict[str, Any] = dict(  # student config of a vision transformer
    name="vit",
    backbone=dict(
        type="kdep_bench.students.timm_backbone.TimmBackbone",
        model="test_vit",
        dynamic_img_size=True,
    ),
    width=64,
    input_px=32,
    tap="output",
)


def test_mae_trains_without_a_teacher_and_its_decoder_is_not_exported(
    stages: dict[str, Path], tmp_path: Path
):
    """MAE: masked autoencoder."""
    method = load_config("method", "mae")
    only_views = {"views": stages["views"]}
    adam = BUDGET | dict(epochs=8, optimizer=dict(type="AdamW", lr=3e-3))
    method["augment"]["ratio"] = 0.5
    outputs, state = pretrain(tmp_path, only_views, method, student=VIT, budget=adam)
    losses = curve(outputs)
    assert losses[-3:].mean() < losses[:3].mean()
    assert outputs["extra_forwards"] == 0
    assert "teacher_source" not in outputs
    kept, dropped = strip(state)
    assert dropped == ["objective"]
    assert set(kept) == set(build_backbone(VIT).state_dict())


def test_dmae_trains_with_a_live_teacher_and_equals_mae_with_alpha_0(
    stages: dict[str, Path], tmp_path: Path
):
    """DMAE is MAE plus alpha times the distance to a layer of the teacher."""
    live = {"views": stages["views"], "images": stages["prepare"]}
    method = load_config("method", "dmae")
    method["objective"] |= {"teacher_layer": "s16", "student_block": 4, "alpha": 0.0}
    options = dict(student=VIT, budget=SHORT, teacher=TEACHER)
    alpha_0, _ = pretrain(tmp_path / "0", live, method, **options)
    config, only_views = load_config("method", "mae"), {"views": stages["views"]}
    mae, _ = pretrain(tmp_path / "m", only_views, config, student=VIT, budget=SHORT)
    np.testing.assert_array_equal(curve(alpha_0), curve(mae))
    method["objective"]["alpha"] = 1.0
    outputs, state = pretrain(tmp_path / "1", live, method, **options)
    assert not np.array_equal(curve(outputs), curve(mae))
    assert set(outputs["terms"]) == {"layer", "reconstruction"}
    assert outputs["teacher_source"] == "live"
    assert outputs["extra_forwards"] == outputs["images_seen"]
    assert outputs["teacher_checksum"]
    kept, dropped = strip(state)
    assert dropped == ["objective"]
    assert set(kept) == set(build_backbone(VIT).state_dict())


def test_a_teacher_that_is_not_live_or_whose_layer_is_unknown_is_refused_by_the_stage(
    stages: dict[str, Path], tmp_path: Path
):
    method = load_config("method", "dmae")
    live = {**stages, "images": stages["prepare"]}
    with pytest.raises(KdepError, match=r"'blocks.8', but the teacher does not run in the"):
        pretrain(tmp_path / "a", stages, method, student=VIT)
    with pytest.raises(KdepError, match=r"unknown layer 'blocks.8' in the teacher lite0"):
        pretrain(tmp_path / "b", live, method, student=VIT, teacher=TEACHER)


def test_mae_is_refused_for_a_student_that_is_no_vision_transformer(
    stages: dict[str, Path], tmp_path: Path
):
    with pytest.raises(KdepError, match="not a vision transformer"):
        pretrain(tmp_path, {"views": stages["views"]}, load_config("method", "mae"))

"""Methods that read the attention of a transformer, in the real pre-training stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.pretrain import stage
from kdep_bench.suite.config import load_config
from kdep_bench.transfer.export import strip
from tests.objectives.test_objectives_dmae import STUDENT, VIT
from tests.pretrain.conftest import BUDGET
from tests.pretrain.test_pretrain import pretrain, spec
from tests.pretrain.test_pretrain_context import R18

SHORT = BUDGET | {"epochs": 2, "optimizer": dict(type="AdamW", lr=1e-3, weight_decay=0.05)}


def cross_arch() -> dict[str, Any]:
    """Config of cross-architecture distillation from the last block of the tiny teacher."""
    config = load_config("method", "cross_arch")
    config["objective"]["teacher_block"] = 5
    return config


def test_a_resumed_run_with_views_and_a_discriminator_equals_an_uninterrupted_one(
    stages: dict[str, Path], tmp_path: Path
):
    inputs = {"views": stages["views"], "images": stages["prepare"]}
    options: dict[str, Any] = dict(budget=SHORT, student=R18, teacher=VIT)
    outputs, weights = pretrain(tmp_path / "uninterrupted", inputs, cross_arch(), **options)
    assert set(outputs["terms"]) == {"attention", "values", "tokens", "adversarial"}
    assert outputs["teacher_source"] == "live"
    assert outputs["extra_forwards"] == outputs["images_seen"]  # one pass of the teacher per image
    added = {k: v for k, v in weights.items() if k.startswith("objective.")}
    assert outputs["extra_parameters"] == sum(v.numel() for v in added.values())
    assert any("discriminator" in k for k in added)
    exported, dropped = strip(weights)
    assert set(exported) == set(build_backbone(R18).state_dict())
    assert dropped == ["objective"]

    class Stop(Exception):
        """Interrupts the run."""

    def stop(done: int, total: int, note: str = "") -> None:
        """A progress function that interrupts the run before its last step."""
        if done == outputs["steps"] - 1:
            raise Stop

    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    with pytest.raises(Stop):
        stage.run(spec(cross_arch(), **options), inputs, interrupted, stop)
    assert list((interrupted / "run").glob("*.pth"))
    resumed_outputs, resumed = pretrain(interrupted, inputs, cross_arch(), **options)
    assert resumed_outputs["curves"] == outputs["curves"]
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(v, resumed[k]) for k, v in weights.items())


def test_the_stage_refuses_a_cache_a_convolutional_teacher_and_a_missing_block(
    stages: dict[str, Path], tmp_path: Path
):
    inputs = {**stages, "images": stages["prepare"]}
    with pytest.raises(KdepError, match="attention of its teacher, which is not in a cache"):
        pretrain(tmp_path / "a", inputs, cross_arch(), student=R18)
    conv = VIT | dict(model="test_convnext", args={})
    with pytest.raises(KdepError, match="vit_teacher has no transformer blocks"):
        pretrain(tmp_path / "b", inputs, cross_arch(), student=R18, teacher=conv)
    config = cross_arch()
    config["objective"]["teacher_block"] = 6
    with pytest.raises(KdepError, match=r"vit_teacher has 6 blocks, .* reads block 6"):
        pretrain(tmp_path / "c", inputs, config, student=R18, teacher=VIT)


def test_tinybert_counts_the_passes_of_the_teacher_and_exports_a_plain_backbone(
    stages: dict[str, Path], tmp_path: Path
):
    method = load_config("method", "tinybert")
    method["objective"] |= dict(student_depth=6, teacher_depth=6)
    student, teacher = (config | {"input_px": 32} for config in (STUDENT, VIT))
    inputs = {"views": stages["views"], "images": stages["prepare"]}
    options: dict[str, Any] = dict(budget=SHORT, student=student, teacher=teacher)
    outputs, state = pretrain(tmp_path, inputs, method, **options)
    assert set(outputs["terms"]) == {"attention", "hidden", "embedding"}
    assert outputs["extra_forwards"] == outputs["images_seen"]
    exported, dropped = strip(state)
    assert set(exported) == set(build_backbone(student).state_dict())
    assert dropped == ["objective"]
    with pytest.raises(KdepError, match="attention of its teacher, which is not in a cache"):
        pretrain(tmp_path / "cached", stages, method, student=student)

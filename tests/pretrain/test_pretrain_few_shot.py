"""FS-BBT end to end: a teacher that returns probabilities only, few images, and the cost.

FS-BBT (few-shot distillation of a black-box teacher) makes more images from a few: mixtures of two
images (mixed) and outputs of a generator (generated). The teacher labels all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from kdep_bench.data import views
from kdep_bench.data.views import open_views
from kdep_bench.engine.collect import _cost_fields
from kdep_bench.errors import KdepError
from kdep_bench.features import cache, synthetic_pool
from kdep_bench.features.cache_read import open_cache
from kdep_bench.suite.config import resolve
from kdep_bench.suite.schema import Json
from kdep_bench.teachers.base import build_teacher
from kdep_bench.teachers.black_box import ProbabilityTeacher
from tests.pretrain.conftest import BUDGET, TEACHER, VIEWS, silent
from tests.pretrain.test_pretrain import pretrain

N_FEW, N_MADE, CLASSES = 24, 40, 3  # images at the start, images made from them, classes


class Colours(ProbabilityTeacher):
    """A black-box teacher: the classes are the colour channels, the brightest is most probable."""

    def predict_proba(self, images: Tensor) -> Tensor:
        """Probabilities [B, 3]."""
        return (images.float().mean((2, 3)) / 8).softmax(1)


class Scores(Colours):
    """Returns scores that are no probabilities."""

    def predict_proba(self, images: Tensor) -> Tensor:
        """The mean of each channel, [B, 3]."""
        return images.float().mean((2, 3))


COLOURS = dict(type=f"{__name__}.Colours", name="colours", input_px=24)
METHOD = resolve("method", "fs_bbt")
SYNTHESIS = METHOD["synthesis"] | dict(images=N_MADE, epochs=2, px=40, threshold=0.2)


@pytest.fixture(scope="module")
def few_shot_stages(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """({stage: folder}, {stage: outputs}) of the stages that make, crop and label the images."""
    root = tmp_path_factory.mktemp("few")
    folders: dict[str, Path] = {"prepare": stages["prepare"]}
    outputs: dict[str, Any] = {}
    synthesis = dict(synthesis=SYNTHESIS, teacher=COLOURS, seed=0, share=N_FEW / 48, share_seed=0)
    probabilities = dict(teacher=COLOURS, outputs=[f"probabilities.{CLASSES}"], pooled=False)
    for name, function, stage_spec in (
        ("prepare", synthetic_pool.prepare, synthesis),
        ("views", views.run, VIEWS),
        ("cache", cache.run, probabilities),
    ):
        out = root / name
        out.mkdir()
        outputs[name] = function(stage_spec, folders, out, silent)
        folders[name] = out
    return folders, outputs


def test_the_pool_has_the_few_images_and_those_that_were_made(few_shot_stages: Any):
    folders, outputs = few_shot_stages
    prepared = outputs["prepare"]
    assert prepared["made"]["few"] == N_FEW
    assert prepared["made"]["mixed"] + prepared["made"]["generated"] == N_MADE
    assert prepared["made"]["generated"] > 0
    assert prepared["counts"]["images"]["pool"] == N_FEW + N_MADE
    root = folders["prepare"] / "data" / "pool" / "images"
    n_files = {folder.name: len(list(folder.iterdir())) for folder in root.iterdir()}
    assert n_files == prepared["made"]
    image = cv2.imread(str(root / "mixed" / "000000.png"))
    assert image is not None
    assert image.shape == (40, 40, 3)


def test_the_few_images_are_copied_unchanged_into_the_new_pool(
    few_shot_stages: Any, stages: dict[str, Path]
):
    from kdep_bench.data.views import read_rgb, subset

    pool = open_views(stages["views"], stages["prepare"])
    opened = open_views(few_shot_stages[0]["views"], few_shot_stages[0]["prepare"])
    copies = [f for f in opened.files if f.startswith("few/")]
    originals = [pool.files[i] for i in np.sort(subset(48, N_FEW / 48, 0))]
    for copied, original in zip(copies, originals, strict=True):
        pixels = read_rgb(opened.root / copied)
        np.testing.assert_array_equal(pixels, read_rgb(pool.root / original))


def test_the_cache_has_only_the_teacher_s_probabilities_for_every_view(few_shot_stages: Any):
    from kdep_bench.features.cache_check import render_rows

    folders, outputs = few_shot_stages
    opened = open_cache(folders["cache"])
    assert len(opened) == 2 * (N_FEW + N_MADE) == outputs["cache"]["forwards"]
    assert opened.shards == []  # no feature
    teacher, pool = build_teacher(COLOURS), open_views(folders["views"], folders["prepare"])
    rows = np.array([0, 77, 2 * (N_FEW + N_MADE) - 1])
    expected = teacher(render_rows(pool, rows, 24)).logits
    assert expected is not None
    sorted_probabilities = expected.softmax(1).sort(1, descending=True).values
    stored = torch.from_numpy(opened.rows(rows, f"probabilities.{CLASSES}")).float()
    torch.testing.assert_close(stored, sorted_probabilities, rtol=0, atol=1e-3)


def test_the_student_learns_the_probabilities_and_its_cost_includes_the_images(
    few_shot_stages: Any, tmp_path: Path
):
    folders, outputs = few_shot_stages
    method = {k: v for k, v in METHOD.items() if k != "synthesis"}
    method["objective"] = method["objective"] | dict(top_classes=CLASSES)
    inputs = {k: folders[k] for k in ("views", "cache")}
    trained, state = pretrain(tmp_path, inputs, method, budget=BUDGET | dict(epochs=6))
    curve = [loss for _, loss in trained["curves"]["pretrain_loss"]]
    assert np.mean(curve[-4:]) < np.mean(curve[:4])
    assert trained["images"] == N_FEW + N_MADE
    assert state["objective.head.weight"].shape[0] == CLASSES

    def record(kind: str, wall_s: float, stage: str, **spec: Any) -> Json:
        """The record of a finished stage that took `wall_s` seconds."""
        return dict(
            id=stage,
            kind=kind,
            wall_s=wall_s,
            outputs=outputs.get(stage, trained),
            spec=spec,
            peak_rss=1,
            environment={},
        )

    run: Any = type("Run", (), dict(fraction=0.5, method=METHOD, teacher=COLOURS))()
    records = {
        "synthesis": record("prepare", 100.0, "prepare"),
        "cache": record("cache", 7.0, "cache", teacher=COLOURS),
        "pretrain": record("pretrain", 50.0, "pretrain"),
    }
    cost = _cost_fields(run, records, report_times=True)
    assert cost["pretrain_s"] == pytest.approx(100.0 + 50.0)
    # Not half of it as for a data fraction of 0.5, because no other method reads this cache.
    assert cost["cache_s"] == pytest.approx(7.0)
    # The teacher runs on the few images to make others, and on two views of all.
    assert cost["extra_forwards"] == N_FEW + 2 * (N_FEW + N_MADE)
    del records["synthesis"]
    assert _cost_fields(run, records, report_times=True)["cache_s"] == pytest.approx(3.5)


def test_a_teacher_whose_values_are_no_probabilities_is_refused():
    images = torch.full((2, 3, 24, 24), 9, dtype=torch.uint8)
    with pytest.raises(KdepError, match="no probabilities"):
        build_teacher(COLOURS | dict(type=f"{__name__}.Scores"))(images)


def test_a_black_box_gives_the_probabilities_of_the_teacher_inside_and_no_feature():
    black_box = build_teacher(
        dict(type="kdep_bench.teachers.black_box.BlackBox", name="box", teacher=TEACHER)
    )
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    out, expected = black_box(images), build_teacher(TEACHER)(images)
    assert out.logits is not None
    assert expected.logits is not None
    torch.testing.assert_close(out.logits.softmax(1), expected.logits.softmax(1))
    assert out.pooled.shape == (2, 0)
    assert (out.maps, out.tokens, out.classifier) == ({}, None, None)
    assert black_box.checksum() != build_teacher(TEACHER).checksum()

"""The automatic loss weight with real teachers, and learned projectors from stage to export.

The automatic weight makes the loss of a student whose output is zero the same for every teacher.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.features import align, cache, cache_read
from kdep_bench.features.target import build_target
from kdep_bench.objectives.weight import DEFAULT_LOSS_AT_ZERO
from kdep_bench.transfer import export
from tests.pretrain.conftest import BUDGET, IMAGES, STUDENT, TEACHER, WIDTH, silent
from tests.pretrain.test_pretrain import KDEP, configured, pretrain

SCALE = 128.0  # factor of the teacher's features; a power of 2, so exact in float16
FEATURE = "kdep_bench.objectives.feature_regression.FeatureRegression"
SVD: dict[str, Any] = KDEP | dict(  # KDEP without PTS
    name="svd", transform=dict(type="kdep_bench.features.transform.NoTransform")
)
PROJECTORS = {
    "conv1x1": dict(type="kdep_bench.objectives.projected_regression.ProjectedRegression"),
    "mlp": dict(type="kdep_bench.objectives.projected_regression.ProjectedRegression", hidden=16),
    "vkd": dict(type="kdep_bench.objectives.vkd.OrthogonalProjection"),
}


def run_align(stages: dict[str, Path], out: Path) -> None:
    """Runs the align stage."""
    out.mkdir()
    align.run(
        dict(width=WIDTH, share=1.0, share_seed=0, align={"type": "svd"}), stages, out, silent
    )


@pytest.fixture(scope="module")
def scaled_stages(
    stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The stages with every cached teacher feature multiplied by SCALE, and their alignment."""
    root = tmp_path_factory.mktemp("scaled")
    shutil.copytree(stages["cache"], root / "cache")
    shard = root / "cache" / "features-00000.npy"
    scaled = np.load(shard) * np.float16(SCALE)
    assert np.isfinite(scaled).all()
    np.save(shard, scaled)
    # Without this file the rows are not compared with the live teacher, which is not scaled.
    (root / "cache" / cache_read.SAMPLE).unlink()
    folders = stages | {"cache": root / "cache"}
    run_align(folders, root / "align")
    return folders | {"align": root / "align"}


def zero_output_loss(method: dict[str, Any], stages: dict[str, Path]) -> tuple[float, float]:
    """(automatic loss weight, mean loss over all views of a student whose output is zero)."""
    objective, target, _ = configured(method, stages)
    assert target is not None
    rows = torch.from_numpy(cache_read.open_cache(stages["cache"]).rows(np.arange(2 * IMAGES)))
    weight = DEFAULT_LOSS_AT_ZERO / objective["target_mean_square"]
    return weight, weight * float(build_target(**target)(rows).square().mean())


def curve(method: dict[str, Any], stages: dict[str, Path], out: Path) -> np.ndarray:
    """[steps, 2]: step number and loss."""
    outputs, _ = pretrain(out, stages, method, budget=BUDGET | {"epochs": 3})
    return np.array(outputs["curves"]["pretrain_loss"])


def test_a_teacher_with_scaled_features_gives_the_same_initial_loss(
    stages: dict[str, Path], scaled_stages: dict[str, Path]
):
    weight, loss = zero_output_loss(SVD, stages)
    weight_scaled, loss_scaled = zero_output_loss(SVD, scaled_stages)
    assert weight / weight_scaled == pytest.approx(SCALE**2, rel=1e-3)
    assert loss == pytest.approx(DEFAULT_LOSS_AT_ZERO, rel=1e-4)
    assert loss_scaled == pytest.approx(DEFAULT_LOSS_AT_ZERO, rel=1e-4)


def test_features_and_T_that_are_scaled_by_the_same_factor_give_the_same_training(
    stages: dict[str, Path], scaled_stages: dict[str, Path], tmp_path: Path
):
    """T is the divisor of PTS, by default 0.1."""
    scaled_method = KDEP | dict(transform=KDEP["transform"] | {"T": 0.1 * SCALE})
    expected = curve(KDEP, stages, tmp_path / "a")
    scaled = curve(scaled_method, scaled_stages, tmp_path / "b")
    np.testing.assert_allclose(expected, scaled, rtol=1e-4)
    assert expected[-1, 1] < expected[0, 1]


@pytest.mark.parametrize("method", [SVD, KDEP], ids=["svd", "kdep"])
def test_with_unit_a_scaled_teacher_gives_the_same_training(
    method: dict[str, Any], stages: dict[str, Path], scaled_stages: dict[str, Path], tmp_path: Path
):
    """`unit=True` divides the target by the root of its mean square."""
    unit = method | dict(objective=dict(type=FEATURE, unit=True))
    expected = curve(unit, stages, tmp_path / "a")
    scaled = curve(unit, scaled_stages, tmp_path / "b")
    np.testing.assert_allclose(expected, scaled, rtol=1e-3)


def test_the_automatic_weights_of_two_teachers_give_the_same_initial_loss(
    stages: dict[str, Path], tmp_path: Path
):
    """EfficientNet-Lite0 and Lite2, real weights."""
    (tmp_path / "cache").mkdir()
    lite2 = TEACHER | {"variant": 2, "name": "lite2", "input_px": 96}
    lite2_stages = stages | {"cache": tmp_path / "cache"}
    cache.run({"teacher": lite2}, stages, lite2_stages["cache"], silent)
    lite2_stages["align"] = tmp_path / "align"
    run_align(lite2_stages, lite2_stages["align"])
    for method in (SVD, KDEP):
        (weight_0, loss_0), (weight_2, loss_2) = (
            zero_output_loss(method, folders) for folders in (stages, lite2_stages)
        )
        assert abs(weight_0 / weight_2 - 1) > 0.02
        assert loss_0 == pytest.approx(DEFAULT_LOSS_AT_ZERO, rel=1e-4)
        assert loss_2 == pytest.approx(DEFAULT_LOSS_AT_ZERO, rel=1e-4)


@pytest.mark.parametrize("name", PROJECTORS)
def test_a_learned_projector_trains_without_labels_and_is_dropped_at_export(
    name: str, stages: dict[str, Path], tmp_path: Path
):
    method = dict(name=name, labels_used=False, objective=PROJECTORS[name], transform=None)
    inputs = {"views": stages["views"], "cache": stages["cache"]}
    outputs, state = pretrain(tmp_path / "p", inputs, method)
    losses = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    assert losses[-1] < losses[0]
    assert outputs["labels_used"] is False
    assert {k.split(".")[0] for k in state} == {"backbone", "objective"}
    (tmp_path / "e").mkdir()
    export.run({"student": STUDENT}, {"pretrain": tmp_path / "p"}, tmp_path / "e", silent)
    exported = torch.load(tmp_path / "e" / "backbone.pth", weights_only=True)
    assert set(exported) == {
        k.removeprefix("backbone.") for k in state if k.startswith("backbone.")
    }

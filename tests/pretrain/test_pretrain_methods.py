"""KDEP with another fixed alignment or transform, in the real stages on tiny data.

The alignment maps the teacher's feature to the student's width (KDEP: SVD); the transform changes
the scale of its channels (KDEP: power temperature scaling, PTS). Nothing is learned.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kdep_bench.features import align
from kdep_bench.suite.config import load_config
from tests.pretrain.conftest import BUDGET, IMAGES, VIEWS, WIDTH, silent
from tests.pretrain.test_pretrain import pretrain

FIXED = (
    "phis",
    "whiten",
    "stdmatch",
    "top_variance",
    "interpolate",
    "random_basis",
    "smallest_basis",
)


@pytest.mark.parametrize("name", FIXED)
def test_a_method_with_a_fixed_alignment_trains_and_reports_the_variance_that_is_kept(
    name: str, stages: dict[str, Path], tmp_path: Path
):
    method = load_config("method", name)
    (tmp_path / "a").mkdir()
    spec = dict(width=WIDTH, share=1.0, share_seed=0, align=method["align"])
    aligned = align.run(spec, stages, tmp_path / "a", silent)
    image_list = aligned["image_list"]
    assert (image_list["images"], image_list["of"], image_list["file"]) == (IMAGES, IMAGES, None)
    assert aligned["rows"] == IMAGES * VIEWS["views"]
    assert 0 < aligned["explained_variance_ratio"] <= 1 + 1e-6
    assert aligned["variance_after"] <= aligned["variance_before"] * (1 + 1e-6)
    if name != "interpolate":  # it may choose a channel that is always 0: then there is no ratio
        assert aligned["std_ratio_after_align"] >= 1
    inputs, one_epoch = stages | {"align": tmp_path / "a"}, BUDGET | {"epochs": 1}
    outputs, state = pretrain(tmp_path / "p", inputs, method, budget=one_epoch)
    assert outputs["steps"] == 3
    assert outputs["target_mean_square"] > 0
    if name in ("phis", "whiten"):  # targets with the standard deviation 1
        assert outputs["target_mean_square"] == pytest.approx(1, rel=1e-3)
        assert outputs["std_ratio_after_transform"] == pytest.approx(1, rel=1e-2)
    assert not any(k.startswith("objective.") for k in state)

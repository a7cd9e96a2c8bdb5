"""A cache of the K largest class probabilities, from the real cache stage to training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features import cache, cache_check, cache_read, sparse
from kdep_bench.suite.config import load_config
from kdep_bench.teachers.base import build_teacher
from tests.pretrain.conftest import BUDGET, IMAGES, TEACHER, VIEWS, silent
from tests.pretrain.test_pretrain import pretrain

K = 10  # number of stored probabilities per view
TINYVIT: dict[str, Any] = load_config("method", "tinyvit")


@pytest.fixture(scope="module")
def sparse_stages(
    stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The stages, with a cache of the K largest probabilities and no feature."""
    out = tmp_path_factory.mktemp("small")
    spec = {"teacher": TEACHER, "outputs": [f"probabilities.{K}"], "pooled": False, "batch": 16}
    filled = cache.run(spec, stages, out, silent)
    rows = IMAGES * VIEWS["views"]
    assert filled["bytes_per_view"] == 4 * K  # a float16 probability and an int16 class number
    assert filled["bytes"] == rows * 4 * K
    stored = sum(len(np.load(p).tobytes()) for p in out.glob("*-00000.npy"))
    assert stored == filled["bytes"]
    assert cache.run(spec, stages, out, silent) == filled  # a finished shard is kept
    return {**stages, "cache": out}


def test_stored_probabilities_are_the_teacher_s_largest(sparse_stages: dict[str, Path]):
    opened = cache_read.open_cache(sparse_stages["cache"])
    assert len(opened) == IMAGES * VIEWS["views"]
    rows = np.array([90, 3, 41])
    images = cache_check.render_rows(
        open_views(sparse_stages["views"], sparse_stages["prepare"]), rows, 32
    )
    logits = build_teacher(TEACHER)(images).logits
    assert logits is not None
    values, classes = (torch.from_numpy(opened.rows(rows, name)) for name in sparse.names(K))
    assert (values.dtype, classes.dtype) == (torch.float16, torch.int16)
    live = F.softmax(logits, 1)
    for expected in (live.topk(K, 1)[0], live.gather(1, classes.long())):
        torch.testing.assert_close(values.float(), expected, rtol=2.0**-9, atol=2.0**-12)


def test_cached_and_live_training_give_the_same_loss_curve(
    sparse_stages: dict[str, Path], tmp_path: Path
):
    budget = BUDGET | dict(epochs=8 / 3, optimizer=BUDGET["optimizer"] | dict(lr=0.005))
    live = {k: v for k, v in sparse_stages.items() if k not in ("cache", "align")}
    live["images"] = live["prepare"]
    curves = []
    for name, inputs, options in (
        ("cached", sparse_stages, {}),
        ("live", live, {"teacher": TEACHER}),
    ):
        outputs, state = pretrain(tmp_path / name, inputs, TINYVIT, budget=budget, **options)
        curves.append(np.array(outputs["curves"]["pretrain_loss"])[:, 1])
        assert {k.split(".")[0] for k in state} == {"backbone", "objective"}
    np.testing.assert_allclose(*curves, rtol=1e-4)
    assert curves[0][0] == pytest.approx(np.log(1000), rel=0.1)  # of equal probabilities
    # Equal bit for bit, they would show that the live training read the cache.
    assert not np.array_equal(*curves)


def test_the_student_learns_the_stored_distribution(sparse_stages: dict[str, Path], tmp_path: Path):
    budget = BUDGET | dict(epochs=10, optimizer=BUDGET["optimizer"] | dict(lr=0.5))
    outputs, _ = pretrain(tmp_path, sparse_stages, TINYVIT, budget=budget)
    curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    opened = cache_read.open_cache(sparse_stages["cache"])
    values, classes = (
        torch.from_numpy(opened.rows(np.arange(len(opened)), name)) for name in sparse.names(K)
    )
    # The entropy of the stored distribution is the smallest possible cross-entropy.
    entropy = float(torch.special.entr(sparse.dense(values, classes, 1000)).sum(1).mean())
    assert entropy < np.mean(curve[-3:]) < entropy + 0.8 * (curve[0] - entropy)
    assert outputs["cache_check"]["rows"] == 8


@pytest.mark.parametrize("array", ["probabilities", "class_numbers"])
def test_a_wrong_stored_array_is_detected_before_training(
    sparse_stages: dict[str, Path], tmp_path: Path, array: str
):
    shutil.copytree(sparse_stages["cache"], tmp_path / "c")
    path = tmp_path / "c" / f"{array}.{K}-00000.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))
    with pytest.raises(KdepError, match=f"cached probabilities.{K} differ"):
        pretrain(tmp_path / "p", {**sparse_stages, "cache": tmp_path / "c"}, TINYVIT)


def test_a_cache_without_these_probabilities_is_refused(
    stages: dict[str, Path], sparse_stages: dict[str, Path], tmp_path: Path
):
    five_classes = TINYVIT | {"objective": TINYVIT["objective"] | {"top_classes": 5}}
    for name, inputs in (("other k", sparse_stages), ("none", stages)):
        with pytest.raises(KdepError, match="does not have the 5 largest"):
            pretrain(tmp_path / name, inputs, five_classes)


def test_more_probabilities_than_classes_are_refused_with_a_cache_and_with_a_live_teacher(
    stages: dict[str, Path], tmp_path: Path
):
    spec = {"teacher": TEACHER, "outputs": ["probabilities.1001"], "pooled": False}
    with pytest.raises(KdepError, match="it has 1000 classes"):
        cache.run(spec, stages, tmp_path, silent)
    too_many = TINYVIT | {"objective": TINYVIT["objective"] | {"top_classes": 1001}}
    live = {"views": stages["views"], "images": stages["prepare"]}
    with pytest.raises(KdepError, match="it has 1000 classes"):
        pretrain(tmp_path / "l", live, too_many, teacher=TEACHER)

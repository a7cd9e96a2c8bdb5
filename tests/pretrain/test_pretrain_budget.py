"""Budgets: steps and images seen, shares, and schedules whose shape follows the budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import PARAM_SCHEDULERS

from kdep_bench.data.fractions import LIST
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features import align
from kdep_bench.files import read_json
from kdep_bench.pretrain.assemble import schedule
from kdep_bench.pretrain.budgets import whole_batches
from kdep_bench.pretrain.stream import ViewStream
from tests.pretrain.conftest import BUDGET, IMAGES, silent
from tests.pretrain.test_pretrain import KDEP, pretrain


def rates(budget: dict[str, Any], steps: int) -> np.ndarray:
    """The learning rate of every step, of 1 at its height, as mmengine's schedulers give it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan = [PARAM_SCHEDULERS.build({**c, "optimizer": optimizer}) for c in schedule(budget, steps)]
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for one in plan:
            one.step()
    return np.array(out)


def shape_of(budget: dict[str, Any], steps: int) -> np.ndarray:
    """The same in closed form, from shares of the run alone."""
    k = np.arange(steps)
    if budget["schedule"] == "step":
        full = 0.1 ** np.floor(np.minimum(3 * k // steps, 2))
    else:
        full = np.ones(steps)
    warm = int(budget["warmup"] * steps)
    warm = 0 if warm < 2 else warm
    if budget["schedule"] == "cosine":
        full = 0.5 * (1 + np.cos(math.pi * np.maximum(k - warm, 0) / (steps - warm)))
    if warm:
        full[:warm] *= np.linspace(0.01, 1, warm)
    return full


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["cosine", "step"]), st.sampled_from([0.0, 0.03, 0.2]), st.integers(10, 100))
def test_the_shape_follows_the_budget(shape: str, warmup: float, thirds: int):
    """Warm-up, cosine and tenfold falls take the same shares of a run of any length."""
    budget, steps = dict(schedule=shape, warmup=warmup), 3 * thirds
    np.testing.assert_allclose(rates(budget, steps), shape_of(budget, steps), atol=1e-9)


def test_one_step_of_warm_up_is_none():
    assert rates(dict(schedule="cosine", warmup=0.05), 30)[0] == 1.0


@pytest.mark.parametrize(
    ("steps", "falls"), [(1, [1, 2]), (2, [1, 2]), (3, [1, 2]), (7, [2, 4]), (90, [30, 60])]
)
def test_the_tenfold_falls_lie_at_the_thirds_and_never_at_the_start(steps: int, falls: list[int]):
    (plan,) = schedule(dict(schedule="step"), steps)
    assert (plan["milestones"], plan["gamma"]) == (falls, 0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**6), st.sampled_from([0.01, 0.05, 0.1, 1.0]), st.integers(1, 90))
def test_steps_are_whole_batches_of_the_epochs(pool: int, share: float, epochs: int):
    images = max(1, round(share * pool))
    budget = dict(epochs=epochs, batch=64)
    steps = whole_batches(budget, images, pool)
    assert steps == epochs * images // 64
    even = whole_batches(budget | {"epochs_over": "pool"}, images, pool)
    assert even == epochs * pool // 64


def test_a_budget_of_less_than_one_batch_never_trains_another_budget(
    stages: dict[str, Path], tmp_path: Path
):
    """The stage trained at least one step: 45 epochs where one was asked, .18 where .01 was."""
    for more, says in (
        (dict(batch=512), "or less"),
        (dict(epochs=0.01), "less than one batch"),
        (dict(ema=0.9999), "the initial weights"),
    ):
        with pytest.raises(KdepError, match=says) as e:
            pretrain(tmp_path / "p", stages, KDEP, budget=BUDGET | more)
        assert "data fraction" not in str(e.value)


def share_spec(**more: Any) -> dict[str, Any]:
    return dict(share=0.5, share_seed=1, budget=BUDGET | {"epochs": 2}) | more


@pytest.mark.parametrize("by", ["image", "class"])
def test_both_stages_save_the_same_list_of_the_images_they_used(
    by: str, stages: dict[str, Path], tmp_path: Path
):
    how = {} if by == "image" else {"share_by": "class"}
    inputs = stages if how else {k: v for k, v in stages.items() if k != "prepare"}
    (tmp_path / "a").mkdir()
    told = align.run(
        dict(width=8, align={"type": "svd"}, share=0.5, share_seed=1, **how),
        inputs,
        tmp_path / "a",
        silent,
    )
    outputs, _ = pretrain(tmp_path / "p", inputs, KDEP, **share_spec(**how))
    names = (tmp_path / "p" / LIST).read_text().splitlines()
    assert outputs["image_list"] == told["image_list"]
    assert (tmp_path / "a" / LIST).read_text().splitlines() == names
    assert len(names) == outputs["images"] == outputs["image_list"]["images"]
    labels = stages["prepare"] / "data" / "pool" / "labels.json"
    stream = ViewStream(stages["views"], 48, 0.5, 1, 0, share_labels=labels if how else None)
    files = open_views(stages["views"]).files
    assert [files[i] for i in stream.images] == names
    assert outputs["notes"] == ([] if by == "image" else [outputs["notes"][0]])
    if how:
        table = read_json(labels)["labels"]
        whole = np.bincount(list(table.values()))
        np.testing.assert_array_equal(
            np.bincount([table[n] for n in names]), [max(1, round(n / 2)) for n in whole]
        )


def test_epochs_over_the_pool_show_every_share_as_many_images(
    stages: dict[str, Path], tmp_path: Path
):
    seen = []
    for share in (0.5, 1.0):
        outputs, _ = pretrain(
            tmp_path / str(share),
            stages,
            KDEP,
            **share_spec(share=share, budget=BUDGET | {"epochs": 1, "epochs_over": "pool"}),
        )
        seen.append(outputs["images_seen"])
        assert outputs["epochs"] == pytest.approx(1 / share)
    assert seen == [IMAGES, IMAGES]

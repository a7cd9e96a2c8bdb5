"""Budgets: steps, images seen, data fractions and learning-rate schedules."""

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


def learning_rates(budget: dict[str, Any], steps: int) -> np.ndarray:
    """The learning rate of every step from mmengine's schedulers, with a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build({**part, "optimizer": optimizer}) for part in schedule(budget, steps)
    ]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return np.array(rates)


def expected_learning_rates(budget: dict[str, Any], steps: int) -> np.ndarray:
    """The learning rates in closed form, as a function of step / steps."""
    step = np.arange(steps)
    if budget["schedule"] == "step":  # a tenth in the second third, a hundredth in the last
        rates = 0.1 ** np.floor(np.minimum(3 * step // steps, 2))
    else:
        rates = np.ones(steps)
    warmup_steps = int(budget["warmup"] * steps)
    warmup_steps = 0 if warmup_steps < 2 else warmup_steps  # one step is no warm-up
    if budget["schedule"] == "cosine":
        after_warmup = np.maximum(step - warmup_steps, 0) / (steps - warmup_steps)
        rates = 0.5 * (1 + np.cos(math.pi * after_warmup))
    if warmup_steps:
        rates[:warmup_steps] *= np.linspace(0.01, 1, warmup_steps)
    return rates


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["cosine", "step"]), st.sampled_from([0.0, 0.03, 0.2]), st.integers(10, 100))
def test_learning_rates_depend_on_the_fraction_of_the_run(shape: str, warmup: float, third: int):
    """Warm-up, cosine and steps are at the same fractions of a run of any length."""
    budget, steps = dict(schedule=shape, warmup=warmup), 3 * third
    np.testing.assert_allclose(
        learning_rates(budget, steps), expected_learning_rates(budget, steps), atol=1e-9
    )


def test_a_warm_up_of_one_step_is_left_out():
    assert learning_rates(dict(schedule="cosine", warmup=0.05), 30)[0] == 1.0


@pytest.mark.parametrize(
    ("steps", "milestones"), [(1, [1, 2]), (2, [1, 2]), (3, [1, 2]), (7, [2, 4]), (90, [30, 60])]
)
def test_the_step_schedule_divides_the_rate_by_10_at_the_thirds_and_never_at_the_start(
    steps: int, milestones: list[int]
):
    (scheduler,) = schedule(dict(schedule="step"), steps)
    assert (scheduler["milestones"], scheduler["gamma"]) == (milestones, 0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**6), st.sampled_from([0.01, 0.05, 0.1, 1.0]), st.integers(1, 90))
def test_the_number_of_steps_is_that_of_complete_batches(pool: int, fraction: float, epochs: int):
    images = max(1, round(fraction * pool))
    budget = dict(epochs=epochs, batch=64)
    steps = whole_batches(budget, images, pool)
    assert steps == epochs * images // 64
    # With epochs_over="pool", an epoch has as many samples as the pool has images.
    over_pool = whole_batches(budget | {"epochs_over": "pool"}, images, pool)
    assert over_pool == epochs * pool // 64


def test_a_budget_of_less_than_one_batch_is_refused(stages: dict[str, Path], tmp_path: Path):
    """One step would exceed the budget: for 0.01 epochs it would be 0.33 epochs."""
    for change, message in (
        (dict(batch=512), "set budget.batch to at most 48"),
        (dict(epochs=0.01), "less than one batch"),
        (dict(ema=0.9999), "the initial weights"),  # the average would still be near these
    ):
        with pytest.raises(KdepError, match=message) as error:
            pretrain(tmp_path / "p", stages, KDEP, budget=BUDGET | change)
        assert "data fraction" not in str(error.value)


def share_spec(**changes: Any) -> dict[str, Any]:
    """Entries of a stage's spec for half of the images and two epochs, with changes."""
    return dict(share=0.5, share_seed=1, budget=BUDGET | {"epochs": 2}) | changes


@pytest.mark.parametrize("by", ["image", "class"])
def test_align_and_pretrain_save_the_same_list_of_the_images_that_they_used(
    by: str, stages: dict[str, Path], tmp_path: Path
):
    """By image: any half of the images. By class: half of the images of each class."""
    options = {} if by == "image" else {"share_by": "class"}
    # Without classes, the stages do not need the labels.
    inputs = stages if options else {k: v for k, v in stages.items() if k != "prepare"}
    (tmp_path / "a").mkdir()
    aligned = align.run(
        dict(width=8, align={"type": "svd"}, share=0.5, share_seed=1, **options),
        inputs,
        tmp_path / "a",
        silent,
    )
    outputs, _ = pretrain(tmp_path / "p", inputs, KDEP, **share_spec(**options))
    names = (tmp_path / "p" / LIST).read_text().splitlines()
    assert outputs["image_list"] == aligned["image_list"]
    assert (tmp_path / "a" / LIST).read_text().splitlines() == names
    assert len(names) == outputs["images"] == outputs["image_list"]["images"]
    labels = stages["prepare"] / "data" / "pool" / "labels.json"
    stream = ViewStream(stages["views"], 48, 0.5, 1, 0, share_labels=labels if options else None)
    files = open_views(stages["views"]).files
    assert [files[i] for i in stream.images] == names
    assert len(outputs["notes"]) == (0 if by == "image" else 1)  # labels chose the images
    if options:
        table = read_json(labels)["labels"]
        class_counts = np.bincount(list(table.values()))
        halves = [max(1, round(count / 2)) for count in class_counts]
        np.testing.assert_array_equal(np.bincount([table[name] for name in names]), halves)


def test_with_epochs_over_the_pool_every_data_fraction_sees_equally_many_images(
    stages: dict[str, Path], tmp_path: Path
):
    budget = BUDGET | {"epochs": 1, "epochs_over": "pool"}
    images_seen = []
    for share in (0.5, 1.0):
        changes = share_spec(share=share, budget=budget)
        outputs, _ = pretrain(tmp_path / str(share), stages, KDEP, **changes)
        images_seen.append(outputs["images_seen"])
        assert outputs["epochs"] == pytest.approx(1 / share)
    assert images_seen == [IMAGES, IMAGES]

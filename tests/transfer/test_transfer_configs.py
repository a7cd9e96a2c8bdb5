"""The OpenMMLab Config that a task builds: split, seed, learning rates, sizes, imports.

Also the checks of a task's recipe, which holds its hyperparameters.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATA_SAMPLERS, PARAM_SCHEDULERS

from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.suite.config import names, resolve
from kdep_bench.transfer import mm_config
from kdep_bench.transfer.recipes import check_recipe
from tests.transfer.conftest import config

R18 = config("students", "resnet18")


def task_config(name: str, **recipe: Any) -> dict[str, Any]:
    """The config of this task, with changes to its recipe."""
    task = config("tasks", name)
    task["recipe"].update(recipe)
    return task


# ---- the split and its images ----


@pytest.mark.parametrize("name", ["smoke_finetune", "smoke_det", "smoke_seg"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_task_s_split_is_counted_as_test_data_even_if_it_is_named_val(
    name: str, split: str, data: Path
) -> None:
    """The images of the split are counted, to be compared with what the test loader loads."""
    task = build({**task_config(name), "split": split})
    train, test = task.check_data(data)
    assert (train.role, train.split, test.role, test.split) == ("train", "train", "test", split)
    # 8 classes of 6 images, or 8 scenes.
    images = 48 if name == "smoke_finetune" else 8
    assert (train.images, test.images) == (images, images)
    assert train.place.stem == "train"
    assert test.place.stem == split


def test_a_task_without_a_split_in_its_config_is_scored_on_test() -> None:
    for name in ("smoke_probe", "smoke_finetune", "smoke_det", "smoke_seg"):
        task = task_config(name)
        del task["split"]
        assert build(task).split == "test"


@pytest.mark.parametrize("name", ["smoke_finetune", "smoke_det", "smoke_seg", "smoke_probe"])
def test_the_run_and_the_order_of_images_have_the_seed_of_the_stage(
    name: str, data: Path, tmp_path: Path
) -> None:
    cfg = build(task_config(name)).build_cfg(data, R18, tmp_path / "b.pth", 11, tmp_path)
    assert cfg.randomness.seed == 11
    # A sampler without a seed uses that of the run.
    assert cfg.train_dataloader.sampler.get("seed") in (None, 11)


@pytest.mark.parametrize("name", ["smoke_det", "smoke_seg", "voc0712_fpn", "smoke_finetune"])
def test_training_reads_complete_batches_and_testing_every_image_once(
    name: str, data: Path, tmp_path: Path
) -> None:
    """With a recipe in steps, a batch may span two epochs, so that every batch is complete.

    With a recipe in epochs (fine-tuning), the last, incomplete batch of an epoch is dropped.
    """
    import mmengine.dataset  # noqa: F401  (registers the samplers)

    cfg = build(task_config(name)).build_cfg(data, R18, tmp_path / "b.pth", 0, tmp_path)
    test, train = cfg.test_dataloader, cfg.train_dataloader
    sampler = DATA_SAMPLERS.build(dict(test.sampler, dataset=range(7), seed=3))
    assert list(sampler) == list(range(7))
    assert not test.drop_last
    drawn = DATA_SAMPLERS.build(dict(train.sampler, dataset=range(7), seed=3))
    order = list(itertools.islice(drawn, 14))
    by_steps = name != "smoke_finetune"
    assert len(order) == (14 if by_steps else 7)
    for start in range(0, len(order), 7):
        epoch = order[start : start + 7]
        assert sorted(epoch) == list(range(7))
        assert epoch != list(range(7))  # shuffled
    assert train.drop_last == (not by_steps)


def test_a_detector_trains_only_on_images_that_have_boxes_of_its_classes(
    data: Path, tmp_path: Path
) -> None:
    cfg = build(task_config("smoke_det")).build_cfg(data, R18, tmp_path / "b.pth", 0, tmp_path)
    assert cfg.train_dataloader.dataset.filter_cfg == dict(filter_empty_gt=True, min_size=16)
    assert cfg.test_dataloader.dataset.filter_cfg is None
    assert cfg.test_dataloader.dataset.test_mode


# ---- the network ----


def test_the_probe_s_config_freezes_every_stage_of_the_backbone(data: Path, tmp_path: Path) -> None:
    """Otherwise mmengine's own runner, given this config, would train the frozen backbone."""
    probe = build(task_config("smoke_probe"))
    # All levels of the pyramid are frozen; a student without a pyramid has none.
    for student, stages in ((R18, 4), ({**R18, "pyramid": None}, 0)):
        cfg = probe.build_cfg(data, student, tmp_path / "b.pth", 0, tmp_path)
        assert cfg.model.backbone.frozen_stages == stages
        assert cfg.model.backbone.norm_eval


@pytest.mark.parametrize("name", ["smoke_det", "smoke_seg", "voc0712_fpn", "coco_c4"])
def test_the_network_whose_flops_are_counted_is_the_network_that_trains(
    name: str, data: Path, tmp_path: Path
) -> None:
    """The two networks differ only in the checkpoint, and for smoke_det in the number of classes,
    which is known only from the data."""
    task = build(task_config(name))
    cfg = task.build_cfg(data, R18, tmp_path / "b.pth", 0, tmp_path)
    trained = mm_config.plain(cfg.model.to_dict())
    counted = mm_config.plain(task.training_model(R18))
    assert counted["backbone"]["init_cfg"]["checkpoint"] == "none"
    if name == "smoke_det":
        assert counted["roi_head"]["bbox_head"]["num_classes"] == 80
        trained["roi_head"]["bbox_head"]["num_classes"] = 80
    without_checkpoint = str(trained).replace(str(tmp_path / "b.pth"), "none")
    assert without_checkpoint == str(counted)


@pytest.mark.parametrize(
    ("name", "dilated"),
    [
        ("resnet18_w32", dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))),
        ("convnext_t", dict(output_stride=8)),
    ],
)
def test_a_segmenter_with_dilate_gives_its_backbone_the_student_s_dilated_arguments(
    name: str, dilated: dict[str, Any]
) -> None:
    task = build(task_config("smoke_seg", dilate=True))
    backbone = task.training_model(config("students", name))["backbone"]
    assert {k: backbone[k] for k in dilated} == dilated


def registered(value: Any) -> Iterator[str]:
    """The names of this project's own classes that a config gives as `type`."""
    if isinstance(value, dict):
        if str(value.get("type")).startswith("Kdep"):
            yield value["type"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from registered(item)


def missing_imports(name: str, data: Path, out: Path) -> list[str]:
    """This project's classes in a task's Config that none of its `custom_imports` defines."""
    from mmengine.registry import Registry

    from kdep_bench.openmmlab import setup

    task = build(task_config(name))
    setup(task.scope)
    values = mm_config.plain(task.build_cfg(data, R18, out / "b.pth", 0, out).to_dict())
    used = set(registered(values))
    assert "KdepLoadGate" in used
    imported = {importlib.import_module(m).__name__ for m in values["custom_imports"]["imports"]}
    module_of = {
        kind: cls.__module__
        for scope in ("mmengine", task.scope)
        for registry in vars(importlib.import_module(f"{scope}.registry")).values()
        if isinstance(registry, Registry)
        for kind, cls in registry.module_dict.items()
    }  # {registered name: module}
    return sorted(name for name in used if module_of[name] not in imported)


@pytest.mark.parametrize(
    "name", ["smoke_probe", "smoke_finetune", "smoke_det", "smoke_seg", "coco_fpn", "voc0712_c4"]
)
def test_a_dumped_config_imports_the_modules_of_its_classes(
    name: str, data: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """These modules define the metric, and the hook that stops a run with an unloaded backbone."""
    assert in_subprocess(missing_imports, name, data, tmp_path) == []


# ---- the sizes of images ----


def resized_sizes() -> list[tuple[int, int]]:
    """(height, width) of a 40 x 80 image after the resize of training and of testing."""
    from kdep_bench.openmmlab import setup

    setup("mmdet")
    from mmdet.registry import TRANSFORMS

    task = build(task_config("coco_fpn", scales=[60], test_scale=80, long_edge=100))
    sizes = []
    for train in (True, False):
        step = next(s for s in task._pipeline(train=train) if "Resize" in s["type"])
        sample = {"img": np.zeros((40, 80, 3), np.uint8), "img_shape": (40, 80)}
        sizes.append(TRANSFORMS.build(step)(sample)["img"].shape[:2])
    return sizes


def test_the_full_scale_detectors_keep_the_aspect_ratio(
    in_subprocess: Callable[..., Any],
) -> None:
    """The short edge of a 40 x 80 image is scaled to 60 in training and to 80 in testing.

    It would be 60 x 120 and 80 x 160, but the long edge is limited to 100: both are 50 x 100.
    """
    assert in_subprocess(resized_sizes) == [(50, 100), (50, 100)]


# ---- the learning rates ----


def learning_rates(schedule: list[dict[str, Any]], lr: float, steps: int) -> list[float]:
    """The learning rate of each step, by mmengine's own schedulers."""
    import mmengine.optim  # noqa: F401  (registers the schedulers)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    schedulers = [PARAM_SCHEDULERS.build({**part, "optimizer": optimizer}) for part in schedule]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def warm_up(step: int, steps: int) -> float:
    """The factor of the learning rate: it rises linearly from 0.05 to 1 in the first `steps`."""
    return 0.05 + 0.95 * min(step / (steps - 1), 1)


def test_the_step_schedule_divides_the_rate_by_ten_at_each_of_its_fractions() -> None:
    """The fractions 0.5 and 0.8 of 20 steps are the steps 10 and 16."""
    schedule = mm_config.step_schedule({"warmup": 5, "steps": [0.5, 0.8]}, 20)
    computed_rates = learning_rates(schedule, 0.4, 20)
    expected = [
        0.4 * warm_up(step, 5) * (0.1 if step >= 10 else 1) * (0.1 if step >= 16 else 1)
        for step in range(20)
    ]
    np.testing.assert_allclose(computed_rates, expected, rtol=1e-9)


def test_the_poly_schedule_falls_to_a_hundredth_after_its_warm_up() -> None:
    """Steps 0 to 4 of 20 warm up; the others fall from 0.4 to 0.004 with the power 0.9."""
    recipe = {"warmup": 5, "poly_power": 0.9, "lr": 0.4}
    computed_rates = learning_rates(mm_config.poly_schedule(recipe, 20), 0.4, 20)
    rising = [0.4 * warm_up(step, 5) for step in range(5)]
    np.testing.assert_allclose(computed_rates[:5], rising, rtol=1e-9)
    # From step 5 to step 19 it falls 14 times.
    falling = [0.004 + (0.4 - 0.004) * (1 - (step - 5) / 14) ** 0.9 for step in range(5, 20)]
    np.testing.assert_allclose(computed_rates[5:], falling, rtol=1e-6)
    assert math.isclose(computed_rates[5], 0.4)


# ---- invalid values in a recipe ----

INVALID_VALUES: dict[str, list[Any]] = {  # key of a recipe -> invalid values
    **{k: [0, 1.5, "8", None] for k in ("iters", "epochs", "batch", "test_batch", "step_epochs")},
    **{k: [0, -1, 2.5] for k in ("max_iter", "folds", "inner_folds", "warmup")},
    **{k: [0, 1.5] for k in ("test_scale", "long_edge")},
    "domain": ["mist", 3],
    "scored_on": ["both", None],
    **{k: [0.0, -0.1, "0.1", float("nan")] for k in ("lr", "head_lr_mult", "poly_power")},
    "momentum": [1.0, -0.1],
    "weight_decay": [-1e-4],
    "clip_norm": [0.0, -1.0],
    "resize": [0.0],
    "norm_eval": [1, "no"],
    "dilate": [0],
    "train_share": [0.0, 1.5],
    "frozen_stages": [1.5, "all"],
    "protocol": ["fold", None],
    "head": ["c5"],
    "scale": [[160], [160, 120, 3], [0, 120], [160.5, 120], 160],
    "crop": [[96], [96, 128, 3], [96, 0], [96.5, 128], "96"],
    "scales": [[], [0], [640.5]],
    "resize_ratio": [[0.5], [0.0, 1.5], [1.5, 0.5]],
    "crop_scale": [[0.4], [0.4, 1.5], [1.0, 0.4], [0.0, 1.0]],
    "c_grid": [[], [0.0, 1.0]],
    "steps": [[], [0.5, 1.5], [0.8, 0.5]],
}
CASES = [(key, value) for key, values in INVALID_VALUES.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{k}={v!r:.20}" for k, v in CASES])
def test_an_invalid_value_in_a_recipe_gives_an_error_that_names_its_key(
    key: str, value: Any
) -> None:
    with pytest.raises(KdepError, match=rf"the recipe of task 't'.*\b{key}\b"):
        check_recipe("t", {key: value})


def test_every_key_of_the_recipes_has_invalid_values_in_this_file() -> None:
    not_checked = {"set", "folder", "model", "classes", "palette", "workers"}
    keys = {key for name in names("task") for key in resolve("task", name)["recipe"]}
    assert keys - not_checked <= set(INVALID_VALUES)


def test_numbers_of_a_recipe_that_contradict_each_other_are_refused() -> None:
    for consistent in (
        {"iters": 10, "warmup": 9},
        {"epochs": 3, "step_epochs": 3},
        {"protocol": "folds", "folds": 2, "inner_folds": 2},
        {"protocol": "split", "folds": 1, "inner_folds": 1},
    ):
        check_recipe("t", consistent)
    for contradicting, message in (
        ({"iters": 10, "warmup": 10}, "warmup=10 and iters=10"),
        ({"epochs": 3, "step_epochs": 4}, "step_epochs=4 and epochs=3"),
        ({"protocol": "folds", "folds": 1, "inner_folds": 2}, "folds = 1"),
        ({"protocol": "folds", "folds": 2, "inner_folds": 1}, "inner_folds = 1"),
    ):
        with pytest.raises(KdepError, match=message):
            check_recipe("t", contradicting)


@pytest.mark.parametrize(
    "colour", [(0, 0), (0, 0, 0, 0), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0), "red", 7, (True, 0, 0)]
)
def test_a_malformed_palette_colour_is_refused_before_the_training(colour: Any) -> None:
    """Images with predictions are drawn after the scoring, which would end with a traceback."""
    with pytest.raises(KdepError, match=r"the colour .* in its palette"):
        check_recipe("t", {"classes": ["a", "b"], "palette": [[0, 0, 0], colour]})
    check_recipe("t", {"classes": ["a", "b"], "palette": [[0, 0, 0], (255, 255, 255)]})


# ---- the metrics of a task ----

MEASURES: dict[str, set[str]] = {  # task -> the metrics that it computes
    "smoke_probe": {"top1", "mean_class_recall"},
    "smoke_finetune": {"top1"},
    "smoke_det": {"bbox_mAP", "bbox_mAP_50", "bbox_mAP_75"},
    "smoke_seg": {"mIoU", "mAcc", "aAcc"},
    "cifar100": {"top1"},
    "cityscapes": {"mIoU", "mAcc", "aAcc"},
    "coco_fpn": {"bbox_mAP", "bbox_mAP_50", "bbox_mAP_75"},
    "voc0712_fpn": {"AP", "AP50", "AP75"},
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_task_accepts_only_a_metric_that_it_computes(name: str) -> None:
    from kdep_bench.suite.pairs import check_metric_and_family

    every_measure = set().union(*MEASURES.values())
    for metric in every_measure:
        task = {**resolve("task", name), "metric": metric}
        if metric in MEASURES[name]:
            check_metric_and_family({}, task)
        else:
            with pytest.raises(KdepError, match="unknown metric"):
                check_metric_and_family({}, task)

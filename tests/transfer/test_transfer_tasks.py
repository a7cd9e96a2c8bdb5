"""The tasks end to end on tiny data: an exported student of random weights, real stages.

Each stage runs in a new process, because OpenMMLab's toolkits cannot be used together in one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.results.records import samples
from kdep_bench.transfer import stage
from tests.transfer.conftest import config, export_random, quiet

TASKS = ("probe", "photos", "finetune", "det", "seg")
TRAINED = ("finetune", "det", "seg")
OVERFIT = {  # recipes with which a task learns its eight training scenes
    "det": {"iters": 90, "batch": 4, "warmup": 10},
    "seg": {"iters": 60, "batch": 4, "warmup": 5},
}


def task_config(kind: str, **recipe: Any) -> dict[str, Any]:
    """Config of the task `smoke_<kind>`, with these changes to its recipe."""
    task = config("tasks", f"smoke_{kind}")
    if kind == "photos":
        recipe = {"folds": 4, **recipe}
    task["recipe"].update(recipe)
    return task


def run_stage(
    task: dict[str, Any], student: dict[str, Any], seed: int, data: Path, export: Path, out: Path
) -> dict[str, Any]:
    """The outputs of the real transfer stage."""
    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": task, "student": student, "seed": seed, "threads": 1}
    return stage.run(spec, {"prepare": data.parent, "export": export}, out, quiet)


def error_of(*args: Any) -> str:
    """The message of the KdepError of a stage that must fail."""
    try:
        run_stage(*args)
    except KdepError as error:
        return str(error)
    return ""


def rebuild(
    task: dict[str, Any], student: dict[str, Any], data: Path, export: Path, out: Path
) -> tuple[dict, dict]:
    """Dumps a task's Config, reloads the dump, and builds the model and data from it.

    Returns the Config and the reloaded Config as dicts.
    """
    from mmengine.config import Config

    from kdep_bench.openmmlab import setup

    built = build(task)
    setup(built.scope)
    cfg = built.build_cfg(data, student, export / "backbone.pth", 0, out / "mm")
    cfg.dump(out / "dumped.py")
    reloaded = Config.fromfile(out / "dumped.py")
    dicts = cfg.to_dict(), reloaded.to_dict()  # before building, which changes some configs
    from mmengine.registry import DATASETS, EVALUATOR, HOOKS, MODELS

    MODELS.build(reloaded.model)
    DATASETS.build(reloaded.train_dataloader.dataset)
    HOOKS.build(reloaded.custom_hooks[0])
    EVALUATOR.build({"type": "mmengine.Evaluator", "metrics": reloaded.test_evaluator})
    return dicts


def check_outputs(outputs: dict[str, Any], task: dict[str, Any], out: Path) -> None:
    """Checks the values that the outputs of every task have, and the files of the stage."""
    json.dumps(outputs, allow_nan=False)
    assert outputs["metric"] == task["metric"]
    assert outputs["value"] == outputs["metrics"][task["metric"]]
    assert 0 <= outputs["value"] <= 1
    assert outputs["gate"]["coverage"] == 1.0
    assert outputs["train_s"] > 0
    assert outputs["images_per_s"] > 0
    assert outputs["per_class"]
    assert all(0 <= v <= 1 for v in outputs["per_class"].values())
    # The per-sample outputs give the reported metrics, to the last digit.
    record = outputs["samples"]
    saved = samples.read(out / record["file"], record["sha256"])
    rescored = samples.scores(saved)
    assert rescored[task["metric"]] == outputs["value"]
    assert {k: outputs["metrics"][k] for k in rescored} == rescored
    assert record["images"] == len(saved.images) == len(set(saved.images))
    assert set(outputs["per_class"]) <= set(saved.classes)
    for file in outputs["pictures"]:  # test images with predictions
        assert (out / file).stat().st_size <= 30_000
        Image.open(out / file).load()


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", ["resnet18_w32", "mobilenetv2_w50"])
def test_a_task_s_config_is_unchanged_by_dump_and_reload(
    kind, name, data, exported, tmp_path, in_subprocess
):
    student = config("students", name)
    built, reloaded = in_subprocess(rebuild, task_config(kind), student, data, exported, tmp_path)
    assert reloaded == built
    assert reloaded["custom_hooks"][0]["type"] == "KdepLoadGate"
    backbone = reloaded["model"]["backbone"]
    assert backbone["type"] == student["backbone"]["type"]
    assert backbone["init_cfg"] == {
        "type": "Pretrained",
        "checkpoint": str(exported / "backbone.pth"),
    }
    preprocessor = reloaded["model"]["data_preprocessor"]
    assert preprocessor["mean"] == [123.675, 116.28, 103.53]  # ImageNet's
    assert preprocessor.get("to_rgb") or preprocessor.get("bgr_to_rgb")


@pytest.mark.e2e
@pytest.mark.parametrize("kind", TASKS)
def test_a_task_run_twice_gives_equal_outputs(
    kind, data, exported, student, tmp_path, in_subprocess
):
    task = task_config(kind)
    first, second = (
        in_subprocess(run_stage, task, student, 0, data, exported, tmp_path / name) for name in "ab"
    )
    check_outputs(first, task, tmp_path / "a")
    for measured_time in ("train_s", "eval_s", "images_per_s"):
        del first[measured_time], second[measured_time]
    assert first == second
    assert bool(first["pictures"]) == (kind in ("det", "seg"))


@pytest.mark.e2e
def test_another_seed_gives_another_training(data, exported, student, tmp_path, in_subprocess):
    task = task_config("finetune")
    first, second = (
        in_subprocess(run_stage, task, student, seed, data, exported, tmp_path / str(seed))
        for seed in (0, 1)
    )
    assert first["curves"]["loss"] != second["curves"]["loss"]


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "min_score"), [("det", 0.3), ("seg", 0.5)])
def test_a_task_learns_its_eight_training_scenes(
    kind, min_score, data, exported, student, tmp_path, in_subprocess
):
    """Scored on the training scenes: the score is low if labels or boxes are read wrongly."""
    task = task_config(kind, **OVERFIT[kind])
    task["split"] = "train"
    outputs = in_subprocess(run_stage, task, student, 1, data, exported, tmp_path)
    losses = [loss for _, loss in outputs["curves"]["loss"]]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert outputs["value"] > min_score
    assert outputs["pictures"] == []


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["det", "seg"])
def test_detection_and_segmentation_run_with_a_backbone_without_dilation(
    kind, data, tmp_path, in_subprocess
):
    student = config("students", "mobilenetv2_w50")
    in_subprocess(export_random, student, tmp_path)
    task = task_config(kind, iters=2, warmup=1)
    outputs = in_subprocess(run_stage, task, student, 0, data, tmp_path / "export", tmp_path / "t")
    check_outputs(outputs, task, tmp_path / "t")


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["probe", "det"])
def test_probe_and_detection_run_with_a_timm_student(kind, data, tmp_path, in_subprocess):
    """ConvNeXt, whose feature maps and pooled feature come from the same modules."""
    student: dict[str, Any] = dict(
        name="convnext",
        backbone=dict(type="kdep_bench.students.timm_backbone.TimmBackbone", model="test_convnext"),
        width=64,
        input_px=64,
        tap="output",
        pyramid=dict(out_indices=(0, 1, 2, 3), channels=(24, 32, 48, 64), strides=(4, 8, 16, 32)),
    )
    in_subprocess(export_random, student, tmp_path)
    task = task_config(kind) if kind == "probe" else task_config(kind, iters=2, warmup=1)
    outputs = in_subprocess(run_stage, task, student, 0, data, tmp_path / "export", tmp_path / "t")
    check_outputs(outputs, task, tmp_path / "t")


@pytest.mark.e2e
def test_a_detector_that_detects_nothing_scores_0_with_a_note(
    data, exported, student, tmp_path, in_subprocess
):
    # Two steps of a tiny rate and a high score threshold: no detection remains.
    task = task_config("det", iters=2, warmup=1, lr=1e-9)
    task["recipe"]["model"]["test_cfg"]["rcnn"]["score_thr"] = 0.99
    outputs = in_subprocess(run_stage, task, student, 0, data, exported, tmp_path)
    assert outputs["value"] == 0.0
    assert "there are no detections" in outputs["notes"][0]
    assert set(outputs["per_class"].values()) == {0.0}


# ---- faults ----


@pytest.fixture
def data_copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data tree that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "data_copy" / "data"))


def test_an_annotation_of_an_unknown_image_is_refused(
    data_copy, exported, student, tmp_path, in_subprocess
):
    path = data_copy / "detect" / "annotations" / "train.json"
    table = json.loads(path.read_text())
    table["annotations"][3]["image_id"] = 999
    path.write_text(json.dumps(table))
    message = in_subprocess(
        error_of, task_config("det"), student, 0, data_copy, exported, tmp_path / "t"
    )
    assert "points to image id 999" in message


def test_categories_that_differ_between_splits_are_refused(
    data_copy, exported, student, tmp_path, in_subprocess
):
    path = data_copy / "detect" / "annotations" / "test.json"
    table = json.loads(path.read_text())
    table["categories"][0]["name"] = "unicorn"
    path.write_text(json.dumps(table))
    message = in_subprocess(
        error_of, task_config("det"), student, 0, data_copy, exported, tmp_path / "t"
    )
    assert "unicorn" in message
    assert "export both files with the same list of categories" in message


def test_masks_of_label_ids_in_place_of_train_ids_are_refused(
    data_copy, exported, student, tmp_path, in_subprocess
):
    fine = data_copy / "cityscapes" / "gtFine" / "train" / "pocket"
    for ids in fine.glob("*_labelIds.png"):
        shutil.copy(ids, str(ids).replace("_labelIds", "_labelTrainIds"))
    message = in_subprocess(
        error_of, task_config("seg"), student, 0, data_copy, exported, tmp_path / "t"
    )
    assert "look like labelIds instead of trainIds" in message


@pytest.mark.parametrize("kind", ["probe", "finetune"])
def test_a_truncated_image_is_named(kind, data_copy, exported, student, tmp_path, in_subprocess):
    path = next((data_copy / "classify" / "test" / "coin").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:700])
    message = in_subprocess(
        error_of, task_config(kind), student, 0, data_copy, exported, tmp_path / "t"
    )
    assert str(path) in message
    assert "truncated" in message


def test_a_missing_class_folder_is_named(data_copy, exported, student, tmp_path, in_subprocess):
    shutil.rmtree(data_copy / "classify" / "test" / "coin")
    message = in_subprocess(
        error_of, task_config("finetune"), student, 0, data_copy, exported, tmp_path / "t"
    )
    assert "coin is missing" in message


@pytest.mark.parametrize("kind", TRAINED)
def test_a_checkpoint_with_another_shape_is_refused(
    kind, data, exported, student, tmp_path, in_subprocess
):
    tensors = torch.load(exported / "backbone.pth", weights_only=True)
    name = "layer2.0.conv1.weight"
    tensors[name] = tensors[name].transpose(0, 1).contiguous()
    torch.save(tensors, tmp_path / "backbone.pth")
    message = in_subprocess(error_of, task_config(kind), student, 0, data, tmp_path, tmp_path / "t")
    assert f"{name}: shape [64, 32, 3, 3] in the model, [32, 64, 3, 3] in the file" in message


def test_an_empty_checkpoint_is_refused(data, student, tmp_path, in_subprocess):
    (tmp_path / "backbone.pth").write_bytes(b"")
    message = in_subprocess(
        error_of, task_config("seg"), student, 0, data, tmp_path, tmp_path / "t"
    )
    assert "backbone.pth is empty" in message


def test_an_infinite_loss_ends_the_training_with_its_iteration(
    data, exported, student, tmp_path, in_subprocess
):
    task = task_config("seg", lr=1e30, warmup=1)
    message = in_subprocess(error_of, task, student, 0, data, exported, tmp_path / "t")
    assert "the loss became NaN or infinite in iteration" in message


def test_unknown_missing_and_contradictory_recipe_keys_are_refused():
    task = task_config("seg", iter=5)
    with pytest.raises(KdepError, match="unknown key 'iter'"):
        build(task)
    with pytest.raises(KdepError, match="warmup=10 and iters=10"):
        build(task_config("det", warmup=10))
    task = task_config("seg")
    del task["recipe"]["lr"]
    with pytest.raises(KdepError, match="lacks the key lr"):
        build(task)


def test_fewer_images_than_a_batch_are_refused(data, exported, student, tmp_path, in_subprocess):
    task = task_config("finetune", batch=64)
    message = in_subprocess(error_of, task, student, 0, data, exported, tmp_path)
    assert "task smoke_finetune has 48 training images, fewer than one batch" in message

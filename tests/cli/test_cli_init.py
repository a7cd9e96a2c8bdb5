"""`kdep-bench init`: what it finds in a folder, and the suite that it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdep_bench.cli import init
from kdep_bench.data.own.discover import discover
from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import build_plan


def save(path: Path, size: tuple[int, ...] = (48, 64, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(path)


def coco(path: Path, names: list[str]) -> None:
    images = [{"id": i, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]} for i in range(2)]
    categories = [{"id": 1, "name": "cat"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))


@pytest.fixture
def root(tmp_path) -> Path:
    """A pool of 300 images, classes in three splits, boxes and masks in two."""
    folder = tmp_path / "my photos"
    for i in range(300):
        save(folder / "unlabelled" / f"{i}.png", (8, 8, 3))
    for split in ("train", "valid", "test"):
        for name in ("cat", "dog"):
            save(folder / "classes" / split / name / "0.png")
    for split in ("train", "test"):
        names = ["0.jpg", "1.jpg"]
        coco(folder / "boxes" / f"instances_{split}.json", names)
        for name in names:
            save(folder / split / name)
            save(folder / "scenes" / split / name)
        for i in range(2):
            mask = np.full((48, 64), 255, np.uint8)
            mask[:9] = i + 1
            path = folder / "scenes" / f"{split}_masks" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return folder


def test_every_part_of_a_folder_is_found_with_its_split(root):
    parts = discover(root)
    assert parts.notes == []
    assert (parts.pool, parts.pool_images, parts.pool_labels) == (root / "unlabelled", 300, False)
    classes = {"train": "train", "val": "valid", "test": "test"}
    assert parts.classify == {s: root / "classes" / name for s, name in classes.items()}
    assert parts.coco == {
        s: (root / "boxes" / f"instances_{s}.json", root / s) for s in ("train", "test")
    }
    assert parts.masks == {
        s: (root / "scenes" / s, root / "scenes" / f"{s}_masks") for s in ("train", "test")
    }
    assert parts.mask_values == 3  # 0, 1 and 2; 255 is ignored


def test_boxes_are_not_paired_with_images_of_another_split(root):
    """Both splits have a 0.jpg: without its own images, a test json would get training images."""
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "scenes" / "test")
    parts = discover(root)
    assert not parts.coco
    assert any("no folder holds its images" in note for note in parts.notes)


def test_without_a_test_split_the_validation_split_is_stated_to_be_the_test(root):
    shutil.rmtree(root / "classes" / "test")
    parts = discover(root)
    assert parts.classify["test"] == root / "classes" / "valid"
    assert any("the validation split is the test split" in note for note in parts.notes)


def test_a_split_with_other_classes_is_left_out(root):
    (root / "classes" / "test" / "dog").rename(root / "classes" / "test" / "horse")
    parts = discover(root)
    assert parts.classify.keys() == {"train", "test"}
    assert parts.classify["test"] == root / "classes" / "valid"
    assert any("other classes than" in note for note in parts.notes)


def test_images_alone_make_a_suite_that_only_pre_trains(tmp_path, capsys):
    for i in range(300):
        save(tmp_path / "holiday" / f"{i}.jpg", (8, 8, 3))
    assert init.main([str(tmp_path / "holiday"), "--out", str(tmp_path / "suites")]) == 0
    plan = build_plan(load_suite(str(tmp_path / "suites" / "holiday.py")))
    assert not plan.runs
    assert {s.kind for s in plan.stages.values()} >= {"pretrain", "export"}
    assert "300 images" in capsys.readouterr().out


def test_the_written_suite_is_planned_with_every_task(root, tmp_path):
    assert init.main([str(root), "--out", str(tmp_path / "suites")]) == 0
    path = tmp_path / "suites" / "my_photos.py"
    plan = build_plan(load_suite(str(path)))
    assert {run.task["family"] for run in plan.runs} == {
        "classification",
        "detection",
        "segmentation",
    }
    text = path.read_text()
    assert text.count("class_1") == 1  # one place to rename
    renamed = text.replace('"class_0", "class_1"', '"sky", "land"')
    path.write_text(renamed)
    tasks: list[dict[str, Any]] = load_suite(str(path)).tasks
    (recipe,) = [t["recipe"] for t in tasks if t["family"] == "segmentation"]
    assert list(recipe["classes"]) == ["sky", "land", "class_2"]


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_folder_without_images_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdepError, match=folder):
        discover(tmp_path / folder)


def test_a_suite_that_exists_is_not_overwritten(root, tmp_path, capsys):
    arguments = [str(root), "--out", str(tmp_path), "--name", "kept"]
    (tmp_path / "kept.py").write_text("mine")
    assert init.main(arguments) == 2
    assert (tmp_path / "kept.py").read_text() == "mine"
    assert "--name" in capsys.readouterr().err

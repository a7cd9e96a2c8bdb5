"""`kdep-bench init` finds the data in a folder (pool, classes, boxes, masks) and writes a suite."""

from __future__ import annotations

import json
import os
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
    """Saves a black image of this shape, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(path)


def coco(path: Path, names: list[str]) -> None:
    """Writes a COCO JSON of these images, with two boxes of the class cat."""
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


def test_init_finds_the_pool_and_the_splits_of_classes_boxes_and_masks(root):
    discovery = discover(root)
    assert discovery.notes == []
    assert (discovery.pool, discovery.pool_images, discovery.pool_labels) == (
        root / "unlabelled",
        300,
        False,
    )
    classes = {"train": "train", "val": "valid", "test": "test"}
    assert discovery.classify == {s: root / "classes" / name for s, name in classes.items()}
    assert discovery.coco == {
        s: (root / "boxes" / f"instances_{s}.json", root / s) for s in ("train", "test")
    }
    assert discovery.masks == {
        s: (root / "scenes" / s, root / "scenes" / f"{s}_masks") for s in ("train", "test")
    }
    assert discovery.n_mask_classes == 3  # 0, 1 and 2; 255 is ignored


def test_boxes_are_not_paired_with_images_of_another_split(root):
    """Both splits have a 0.jpg, so a test JSON without its images would fit training images."""
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "scenes" / "test")
    discovery = discover(root)
    assert not discovery.coco
    assert any("no folder contains its images" in note for note in discovery.notes)


def test_without_a_test_split_a_note_says_that_the_validation_split_is_used(root):
    shutil.rmtree(root / "classes" / "test")
    discovery = discover(root)
    assert discovery.classify["test"] == root / "classes" / "valid"
    assert any("the validation split is used as test split" in note for note in discovery.notes)


def test_a_note_names_the_file_of_a_part_that_has_only_one_split(root):
    (root / "boxes" / "instances_test.json").unlink()
    discovery = discover(root)
    file = root / "boxes" / "instances_train.json"
    assert not discovery.coco
    assert f"{file}: left out, because there is only the split train" in discovery.notes


def test_a_split_with_other_classes_is_left_out(root):
    (root / "classes" / "test" / "dog").rename(root / "classes" / "test" / "horse")
    discovery = discover(root)
    assert discovery.classify.keys() == {"train", "test"}
    assert discovery.classify["test"] == root / "classes" / "valid"
    assert any("other classes than" in note for note in discovery.notes)


def test_a_folder_of_images_gives_a_suite_that_only_pre_trains(tmp_path, capsys):
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
    assert text.count("class_1") == 1  # the user renames a class in one place
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


def test_an_existing_suite_is_not_overwritten(root, tmp_path, capsys):
    arguments = [str(root), "--out", str(tmp_path), "--name", "kept"]
    (tmp_path / "kept.py").write_text("mine")
    assert init.main(arguments) == 2
    assert (tmp_path / "kept.py").read_text() == "mine"
    assert "--name" in capsys.readouterr().err


def make_pair(folder: Path, split: str, value: int, dtype: type = np.uint8) -> None:
    """An image and its mask, which has two values: 0 and `value`."""
    save(folder / split / "images" / "0.jpg")
    mask = np.zeros((48, 64), dtype)
    mask[:9] = value
    (folder / split / "masks").mkdir(parents=True)
    Image.fromarray(mask).save(folder / split / "masks" / "0.png")


def test_masks_are_paired_with_the_images_of_their_own_data_set(tmp_path):
    """Both sets have a 0.jpg, so masks of one would fit images of the other."""
    for name in ("first", "second"):
        for split in ("train", "test"):
            make_pair(tmp_path / name, split, 2)
    shutil.rmtree(tmp_path / "first" / "train" / "masks")
    discovery = discover(tmp_path)
    second = tmp_path / "second"
    assert discovery.masks == {
        s: (second / s / "images", second / s / "masks") for s in ("train", "test")
    }
    assert any("left out" in note and "first" in note for note in discovery.notes)


def test_a_note_warns_of_splits_from_different_data_sets(tmp_path):
    make_pair(tmp_path / "first", "train", 2)
    make_pair(tmp_path / "second", "test", 2)
    notes = discover(tmp_path).notes
    assert any("check that they belong to one data set" in note for note in notes)


@pytest.mark.parametrize(
    ("value", "dtype", "largest"), [(255, np.uint8, 0), (40_000, np.uint16, 40_000)]
)
def test_masks_with_one_class_or_with_values_above_255_give_no_task(
    tmp_path, value, dtype, largest
):
    """255 is ignored: with 0 and 255 there is one class, and every score would be 1."""
    for split in ("train", "test"):
        make_pair(tmp_path, split, value, dtype)
    discovery = discover(tmp_path)
    assert not discovery.masks
    assert not discovery.classify
    note = next(note for note in discovery.notes if "left out, because mask values" in note)
    assert f"the largest value in these masks is {largest}" in note


def test_the_values_of_16_bit_masks_are_counted(tmp_path):
    for split in ("train", "test"):
        make_pair(tmp_path, split, 3, np.uint16)
    assert discover(tmp_path).n_mask_classes == 4  # 0 to 3, the largest value in the masks


def test_a_note_says_that_the_pool_contains_test_images(tmp_path):
    for i in range(4):
        save(tmp_path / "images" / f"{i}.jpg")
    coco(tmp_path / "train.json", ["0.jpg", "1.jpg"])
    coco(tmp_path / "test.json", ["2.jpg", "3.jpg"])
    assert any("also contains test images" in note for note in discover(tmp_path).notes)


@pytest.mark.parametrize("name", ["../{}", "{root}/images/{}", "a" * 5000])
def test_boxes_whose_images_are_outside_the_image_folder_are_left_out(tmp_path, name):
    for i in range(2):
        save(tmp_path / "images" / f"{i}.jpg")
        save(tmp_path / f"{i}.jpg")
    for split in ("train", "test"):
        names = [name.format(f"{i}.jpg", root=tmp_path) for i in range(2)]
        coco(tmp_path / "boxes" / f"{split}.json", names)
    discovery = discover(tmp_path)
    assert not discovery.coco
    assert any("no folder contains its images" in note for note in discovery.notes)


def test_a_json_without_boxes_gives_no_detection_task(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "0.jpg")
        coco(tmp_path / f"panoptic_{split}.json", ["0.jpg"])
        path = tmp_path / f"panoptic_{split}.json"
        path.write_text(path.read_text().replace("bbox", "segments_info"))
    assert not discover(tmp_path).coco


def test_a_link_to_a_parent_folder_is_not_followed(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png")
    (tmp_path / "again").symlink_to(tmp_path)
    discovery = discover(tmp_path)
    assert discovery.classify == {s: tmp_path / s for s in ("train", "test")}
    assert discovery.pool_images == 2


def test_a_folder_with_quotes_and_backslashes_gives_a_suite_that_loads(tmp_path):
    folder = tmp_path / 'a"""b\\N\'c'
    save(folder / "0.png")
    assert init.main([str(folder), "--name", "odd", "--out", str(tmp_path / "out")]) == 0
    assert load_suite(str(tmp_path / "out" / "odd.py")).data["pool"] == str(folder)


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    save(folder / "0.png")
    assert init.main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "rename the folder" in capsys.readouterr().err


def classes_with_boxes(folder: Path) -> Path:
    """Two splits of class folders whose images also have boxes."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(150):
                save(folder / split / name / f"{i}.png", (48, 64, 3))
        coco(folder / f"{split}.json", ["cat/0.png", "dog/0.png"])
    return folder


def test_class_folders_of_images_with_boxes_are_left_out_with_a_fix_that_works(tmp_path, capsys):
    folder, out = classes_with_boxes(tmp_path / "pets"), tmp_path / "out"
    assert init.main([str(folder), "--out", str(out)]) == 0
    printed, written = capsys.readouterr().out, " ".join((out / "pets.py").read_text().split())
    for text in (printed, written):
        assert "run init again with --classes-of-boxes and another --name" in text
    assert "classify" not in load_suite(str(out / "pets.py")).data
    advised_arguments = [str(folder), "--out", str(out), "--classes-of-boxes", "--name", "pets2"]
    assert init.main(advised_arguments) == 0
    suite = load_suite(str(out / "pets2.py"))
    assert suite.data["classify"] == {s: str(folder / s) for s in ("train", "test")}
    assert {t["family"] for t in suite.tasks} == {"classification", "detection"}


def test_a_note_names_a_folder_that_cannot_be_read(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("unlabelled"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    notes = discover(root).notes
    assert any("unlabelled: left out, because it cannot be read (Perm" in n for n in notes)


def test_a_note_names_folders_that_are_too_deep_to_be_searched(tmp_path):
    save(tmp_path / "0.png")
    save(tmp_path / "1/2/3/4/5/6/0.png")
    assert any(
        "1/2/3/4/5/6: left out, because only 5 levels" in n for n in discover(tmp_path).notes
    )


def set_keypoints(path: Path, box: list[float]) -> None:
    """Turns the annotations of a COCO JSON into keypoints with the given box."""
    table = json.loads(path.read_text())
    for annotation in table["annotations"]:
        annotation.update(keypoints=[5, 5, 2], num_keypoints=1, bbox=box)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("box", "is_used", "note"),
    [
        ([1, 1, 9, 9], True, "only its boxes are used"),
        ([0, 0, 0, 0], False, "2 of its 2 annotations have no box with an area"),
    ],
)
def test_a_json_of_keypoints_gives_a_detection_task_only_if_it_has_boxes(
    tmp_path, box, is_used, note
):
    for split in ("train", "test"):
        save(tmp_path / split / "0.jpg")
        save(tmp_path / split / "1.jpg")
        coco(tmp_path / f"{split}.json", ["0.jpg", "1.jpg"])
        set_keypoints(tmp_path / f"{split}.json", box)
    discovery = discover(tmp_path)
    assert bool(discovery.coco) is is_used
    assert any(note in n for n in discovery.notes)


def test_boxes_of_keypoints_are_not_preferred_to_boxes_of_classes(root):
    """`a_keypoints` is found before `instances`, but must not become the detection task."""
    for split in ("train", "test"):
        path = root / "boxes" / f"a_keypoints_{split}.json"
        shutil.copy(root / "boxes" / f"instances_{split}.json", path)
        set_keypoints(path, [1, 1, 9, 9])
    discovery = discover(root)
    assert {path.name for path, _ in discovery.coco.values()} == {
        "instances_train.json",
        "instances_test.json",
    }
    assert sum("describes keypoints and other files have boxes" in n for n in discovery.notes) == 2


def test_a_note_names_a_damaged_json(root):
    path = root / "boxes" / "instances_test.json"
    path.write_text(path.read_text()[:-9])
    assert any(f"{path}: left out" in n and "is truncated" in n for n in discover(root).notes)


def test_class_folders_without_splits_give_a_note_and_no_task(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.png")
    discovery = discover(tmp_path)
    assert not discovery.classify
    assert any("no folder is named train or test" in note for note in discovery.notes)


def test_a_file_as_the_out_folder_is_refused_with_a_fix_that_works(root, tmp_path, capsys):
    out = tmp_path / "suites" / "birds.py"
    out.parent.mkdir()
    out.write_text("mine")
    assert init.main([str(root), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "is a file" in error
    assert f"--out {out.parent} --name birds" in error
    assert out.read_text() == "mine"
    assert init.main([str(root), "--out", str(out.parent), "--name", "robins"]) == 0


def test_text_files_named_jpg_are_not_counted_as_images(tmp_path: Path):
    pool = tmp_path / "photos"
    pool.mkdir()
    (pool / "a.jpg").write_text("no image")
    with pytest.raises(KdepError, match=r"no readable image.*photos/a\.jpg\)\. Fix: remove"):
        discover(tmp_path)
    second_folder = tmp_path / "more"
    second_folder.mkdir()
    Image.new("RGB", (8, 8)).save(second_folder / "b.jpg")
    notes = discover(tmp_path).notes
    assert any("photos/a.jpg: cannot be read as an image" in note for note in notes)

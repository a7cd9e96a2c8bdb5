"""Foggy Cityscapes: boxes from masks of instance ids, and damaged copies that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdep_bench.data.official import foggy_cityscapes as foggy
from kdep_bench.data.official.base import verify
from kdep_bench.errors import KdepError
from tests.data.test_data_official import make

NAME = "foggy_cityscapes"
CONVERT = "kdep-bench data foggy_cityscapes --root .* --archives"


def table_of(root: Path, domain: str, split: str = "train") -> dict[str, Any]:
    """The content of an annotation file."""
    return json.loads(foggy.annotation_file(root / NAME, domain, split).read_text())


def test_boxes_enclose_the_pixels_of_each_instance():
    """A mask of 6 x 8 pixels, worked out by hand."""
    ids = np.full((6, 8), 7, np.uint16)  # road has no instances
    ids[1:3, 2:5] = 26001  # a car, 2 x 3 pixels
    ids[4, 0] = 24012  # a person, in two parts
    ids[5, 7] = 24012
    ids[0, 6:8] = 33  # a group of bicycles
    ids[5, 0:2] = 30  # a trailer: a class that is not evaluated
    assert foggy.boxes_of(ids) == [
        {"category_id": 33, "bbox": [6, 0, 2, 1], "area": 2, "iscrowd": 1},
        {"category_id": 24, "bbox": [0, 4, 8, 2], "area": 2, "iscrowd": 0},
        {"category_id": 26, "bbox": [2, 1, 3, 2], "area": 6, "iscrowd": 0},
    ]


def test_clear_and_foggy_files_differ_only_in_the_names_of_the_images(tmp_path: Path):
    make(NAME, tmp_path)
    clear, in_fog = (table_of(tmp_path, domain) for domain in ("clear", "foggy"))
    assert clear["annotations"] == in_fog["annotations"]
    assert clear["categories"] == in_fog["categories"]
    assert [c["id"] for c in clear["categories"]] == sorted(foggy.CLASSES)
    for a, b in zip(clear["images"], in_fog["images"], strict=True):
        stem = a["file_name"].removesuffix("_leftImg8bit.png")
        assert b == {**a, "file_name": f"{stem}_leftImg8bit_foggy_beta_0.02.png"}


def test_the_boxes_of_a_scene_are_those_of_its_mask(tmp_path: Path):
    make(NAME, tmp_path)
    table = table_of(tmp_path, "foggy", "val")
    for image in table["images"]:
        stem = image["file_name"].removesuffix(foggy.DOMAINS["foggy"][1])
        with Image.open(tmp_path / NAME / "gtFine/val" / f"{stem}{foggy.INSTANCES}") as opened:
            expected = foggy.boxes_of(np.asarray(opened))
        boxes = [a for a in table["annotations"] if a["image_id"] == image["id"]]
        keys = ("category_id", "bbox", "area", "iscrowd")
        assert [{k: box[k] for k in keys} for box in boxes] == expected


def remove_fog(folder: Path) -> None:
    """Removes a foggy scene."""
    next((folder / "leftImg8bit_foggy/val").rglob("*.png")).unlink()


def add_mask(folder: Path) -> None:
    """Adds a mask after the annotations were written."""
    mask = next((folder / "gtFine/train").rglob(f"*{foggy.INSTANCES}"))
    (mask.parent / f"tinytown_999999_000019{foggy.INSTANCES}").write_bytes(mask.read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [(remove_fog, "does not exist"), (add_mask, "has 8 images, but gtFine/train has 9 masks")],
)
def test_an_incomplete_copy_is_refused(damage: Any, message: str, tmp_path: Path):
    dataset = make(NAME, tmp_path)
    damage(tmp_path / NAME)
    with pytest.raises(KdepError, match=message):
        verify(dataset, tmp_path, None, check_counts=False)


def test_the_fix_for_a_mask_without_annotations_works(tmp_path: Path):
    dataset = make(NAME, tmp_path)
    folder = tmp_path / NAME
    add_mask(folder)
    for name, suffix in foggy.DOMAINS.values():
        image = next((folder / name / "train").rglob(f"*{suffix}"))
        (image.parent / f"tinytown_999999_000019{suffix}").write_bytes(image.read_bytes())
    with pytest.raises(KdepError, match=CONVERT):
        verify(dataset, tmp_path, None, check_counts=False)
    foggy.convert(folder, lambda *_: None)
    assert verify(dataset, tmp_path, None, check_counts=False)["train_foggy_images"] == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (None, "dimensions of uint8")],
)
def test_a_mask_that_has_no_instance_ids_is_refused(content: Any, message: str, tmp_path: Path):
    make(NAME, tmp_path)
    mask = next((tmp_path / NAME / "gtFine/val").rglob(f"*{foggy.INSTANCES}"))
    if content is None:
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    else:
        mask.write_bytes(content)
    with pytest.raises(KdepError, match=message):
        foggy.convert(tmp_path / NAME, lambda *_: None)


def test_a_folder_without_masks_is_refused(tmp_path: Path):
    with pytest.raises(KdepError, match="contains no mask"):
        foggy.convert(tmp_path, lambda *_: None)

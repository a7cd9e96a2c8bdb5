"""Every check accepts intact data and reports each kind of damage in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdep_bench.data.checks import (
    check_coco,
    check_image,
    check_image_folder,
    check_segmentation,
)
from kdep_bench.errors import KdepError


def save(path: Path, size: tuple[int, int] = (32, 24), mode: str = "RGB", fill: Any = None) -> Path:
    """Saves a random image, or one of a single colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    if fill is None:
        image = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
        image = image.convert(mode)
    else:
        image = Image.new(mode, size, fill)
    image.save(path)
    return path


def test_intact_images_are_accepted(tmp_path: Path) -> None:
    assert check_image(save(tmp_path / "a.jpg")) == (32, 24, "RGB")
    assert check_image(save(tmp_path / "a.png", mode="L")).mode == "L"
    assert check_image(save(tmp_path / "b.png", mode="RGBA"), alpha=True).mode == "RGBA"


@pytest.mark.parametrize("kept_fraction", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str, kept_fraction: float) -> None:
    path = save(tmp_path / f"a.{suffix}", size=(200, 150))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept_fraction)])
    with pytest.raises(KdepError, match=r"a\.\w+ is (truncated|damaged)"):
        check_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"<html>404 not found</html>", "is not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "is (not an image|damaged|truncated)"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(KdepError, match=message):
        check_image(path)


def test_missing_images_and_unusual_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KdepError, match="does not exist"):
        check_image(tmp_path / "none.jpg")
    with pytest.raises(KdepError, match="is CMYK"):
        check_image(save(tmp_path / "c.jpg", mode="CMYK"))
    with pytest.raises(KdepError, match="16-bit"):
        check_image(save(tmp_path / "d.png", mode="I;16", fill=70))
    with pytest.raises(KdepError, match="with alpha"):
        check_image(save(tmp_path / "e.png", mode="RGBA"))


def coco(folder: Path, **changes: Any) -> Path:
    """An intact COCO file of two images and two annotations, with changes.

    `changes` replace a list of the file or, for other keys, an entry of the first annotation.
    """
    for name in ("1.jpg", "2.jpg"):
        save(folder / "img" / name)
    box = {"category_id": 1, "bbox": [2, 3, 10, 10], "area": 60, "iscrowd": 0}
    table = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 24} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, **box},
            {"id": 2, "image_id": 2, **box, "bbox": [0, 0, 32.0, 24.0], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    for key, value in changes.items():
        if key in table:
            table[key] = value
        else:
            table["annotations"][0][key] = value
    path = folder / "a.json"
    path.write_text(json.dumps(table))
    return path


def test_an_intact_coco_file_with_crowds_is_accepted(tmp_path: Path) -> None:
    counts = check_coco(coco(tmp_path), tmp_path / "img")
    assert counts == {"images": 2, "annotations": 2, "categories": 1, "decoded": 2}
    assert check_coco(coco(tmp_path), tmp_path / "img", n_decoded=1)["decoded"] == 1
    assert check_coco(coco(tmp_path))["decoded"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 7}, "annotation 1 in .* points to image id 7"),
        ({"image_id": None}, "annotation 1 in .* has no image_id; expected"),
        ({"category_id": 5}, "category id 5"),
        ({"area": None}, "has no area; expected"),
        ({"id": 2}, "the id 2 occurs twice in annotations"),
        ({"bbox": [25, 3, 10, 10]}, "outside its image of 32x24"),
        ({"bbox": [-3, 3, 10, 10]}, "outside its image"),
        ({"bbox": [2, 3, 0, 10]}, "without area"),
        ({"bbox": [2, 3, 10]}, r"has the bbox \[2, 3, 10\]"),
        ({"bbox": [2, 3, float("nan"), 4]}, "has the bbox"),
        ({"area": 0}, "has the area 0"),
        ({"categories": []}, "the list categories in .* is empty"),
        ({"images": [{"id": 1}, {"id": 1}]}, "the id 1 occurs twice in images"),
        (
            {"images": [{"id": i, "width": 32, "height": 24} for i in (1, 2)]},
            "2 of 2 images named in .* the first is None",
        ),
        ({"categories": [{"name": "thing"}]}, "no integer id"),
        ({"annotations": None}, "contains"),
    ],
)
def test_a_damaged_coco_file_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = coco(tmp_path, **changes)
    with pytest.raises(KdepError, match=message) as caught:
        check_coco(path, tmp_path / "img")
    assert str(path) in str(caught.value)


def test_missing_images_and_wrong_sizes_of_a_coco_file_are_refused(tmp_path: Path) -> None:
    path = coco(tmp_path)
    save(tmp_path / "img/2.jpg", size=(30, 24))
    with pytest.raises(KdepError, match=r"is 30x24; expected 32x24"):
        check_coco(path, tmp_path / "img")
    (tmp_path / "img/2.jpg").unlink()
    with pytest.raises(KdepError, match=r"1 of 2 images .* the first is 2\.jpg"):
        check_coco(path, tmp_path / "img")
    with pytest.raises(KdepError, match=r"image folder .* does not exist"):
        check_coco(path, tmp_path / "nowhere")
    path.write_text('{"images": [')
    with pytest.raises(KdepError, match="not valid JSON"):
        check_coco(path)


def make_pair(root: Path, split: str = "val") -> tuple[Path, Path]:
    """Writes an intact image with its mask; returns (image, mask)."""
    image = save(root / f"leftImg8bit/{split}/city/a_000001_000019_leftImg8bit.png")
    mask = root / f"gtFine/{split}/city/a_000001_000019_gtFine_labelTrainIds.png"
    return image, save(mask, mode="L", fill=3)


def test_wrong_masks_of_a_segmentation_folder_are_refused(tmp_path: Path) -> None:
    image, mask = make_pair(tmp_path)
    assert check_segmentation(tmp_path, 4, ["val"]) == {"val": 1}
    with pytest.raises(KdepError, match=r"values \[3\].*labelIds instead of trainIds"):
        check_segmentation(tmp_path, 3, ["val"])
    save(mask, mode="L", fill=255)
    assert check_segmentation(tmp_path, 3, ["val"]) == {"val": 1}
    save(mask, size=(16, 12), mode="L", fill=0)
    with pytest.raises(KdepError, match="is 16x12; expected 32x24"):
        check_segmentation(tmp_path, 3, ["val"])
    save(mask, mode="RGB", fill=(0, 0, 0))
    with pytest.raises(KdepError, match="mode RGB"):
        check_segmentation(tmp_path, 3, ["val"])
    mask.rename(mask.with_name("a_000001_000019_gtFine_labelIds.png"))
    with pytest.raises(KdepError, match=r"no mask.*create them from labelIds"):
        check_segmentation(tmp_path, 3, ["val"])
    save(mask, mode="L", fill=0)
    image.unlink()
    with pytest.raises(KdepError, match="contains no"):
        check_segmentation(tmp_path, 3, ["val"])


def test_wrong_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        save(tmp_path / name)
    assert check_image_folder(tmp_path, ["cat", "dog"]) == {"cat": 2, "dog": 1}
    with pytest.raises(KdepError, match="cow is missing"):
        check_image_folder(tmp_path, ["cat", "dog", "cow"])
    with pytest.raises(KdepError, match="dog is not among the classes"):
        check_image_folder(tmp_path, ["cat"])
    (tmp_path / "dog/1.jpg").write_bytes(b"")
    with pytest.raises(KdepError, match="0 bytes"):
        check_image_folder(tmp_path)
    (tmp_path / "dog/1.jpg").unlink()
    with pytest.raises(KdepError, match="dog is empty"):
        check_image_folder(tmp_path)
    (tmp_path / "dog/notes.txt").write_text("x")
    with pytest.raises(KdepError, match="not have an image suffix"):
        check_image_folder(tmp_path)
    with pytest.raises(KdepError, match="does not exist"):
        check_image_folder(tmp_path / "none")

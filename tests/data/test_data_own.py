"""Data of one's own: linked for the tasks, and each fault a sentence with its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdep_bench.data.checks import check_coco, check_segmentation, check_upright
from kdep_bench.data.official import tiny
from kdep_bench.data.own import prepare
from kdep_bench.errors import KdepError


def quiet(*_: object) -> None:
    return None


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """A small data set of everything, and the spec that names it."""
    rng, root = np.random.default_rng(0), tmp_path / "mine"
    for i in range(4):
        tiny.save(root / "pool" / "ab"[i % 2] / f"{i}.jpg", tiny.picture(rng))
    spec: dict[str, Any] = {"name": "own", "pool": str(root / "pool"), "classes": ["x", "y"]}
    spec |= {"coco": {}, "masks": {}}
    for split in ("train", "test"):
        images, boxes = [], []
        for i in range(3):
            tiny.save(root / split / f"{i}.jpg", tiny.picture(rng))
            tiny.save(root / "seg" / split / f"{i}.jpg", tiny.picture(rng))
            tiny.save(root / "masks" / split / f"{i}.png", tiny.mask(rng, 2, ignore=255))
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
            boxes.append(
                {"id": i, "image_id": i, "category_id": 7, "bbox": [1, 2, 9, 9], "area": 81}
            )
        table = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "cat"}]}
        (root / f"{split}.json").write_text(json.dumps(table))
        spec["coco"][split] = {"json": str(root / f"{split}.json"), "images": str(root / split)}
        spec["masks"][split] = {
            "images": str(root / "seg" / split),
            "masks": str(root / "masks" / split),
        }
    return spec


def run(spec: dict[str, Any], tmp_path: Path, name: str = "out") -> dict[str, Any]:
    (tmp_path / name).mkdir()
    return prepare(spec, {}, tmp_path / name, quiet)


def test_everything_lies_where_the_tasks_look(own: dict[str, Any], tmp_path: Path) -> None:
    made = run({**own, "pool_labels": True}, tmp_path)
    data = tmp_path / "out" / "data"
    assert made["counts"]["images"]["pool"] == 4
    for split in ("train", "test"):
        check_coco(data / "detect/annotations" / f"{split}.json", data / "detect" / split)
    assert check_segmentation(data / "cityscapes", 2, ("train", "test")) == {"train": 3, "test": 3}
    labels = json.loads((data / "pool/labels.json").read_text())
    assert labels["classes"] == ["a", "b"]
    assert all((data / "pool/images" / n).is_file() for n in labels["labels"])
    assert run({**own, "pool_labels": True}, tmp_path, "b")["fingerprint"] == made["fingerprint"]


def break_exif(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "train/0.jpg").save(root / "train/0.jpg", exif=exif)


def break_classes(root: Path) -> None:
    path = root / "test.json"
    path.write_text(path.read_text().replace('"cat"', '"dog"'))


def break_mask_size(root: Path) -> None:
    Image.open(root / "masks/train/0.png").resize((32, 24)).save(root / "masks/train/0.png")


def break_mask_value(root: Path) -> None:
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(root / "masks/test/1.png")


def break_cmyk(root: Path) -> None:
    Image.open(root / "train/1.jpg").convert("CMYK").save(root / "train/1.jpg")


def break_deep(root: Path) -> None:
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(root / "pool/a/deep.png")


@pytest.mark.parametrize(
    ("fault", "file", "said"),
    [
        (break_exif, "train/0.jpg", "EXIF orientation 6"),
        (break_classes, "test.json", "class list of .* disagrees"),
        (break_mask_size, "0_gtFine_labelTrainIds.png", "32x24"),
        (break_mask_value, "1_gtFine_labelTrainIds.png", "the values"),
        (break_cmyk, "train/1.jpg", "CMYK"),
        (break_deep, "deep.png", "16-bit"),
        (lambda r: (r / "pool/a/0.jpg").write_bytes(b""), "pool/a/0.jpg", "zero bytes"),
        (lambda r: (r / "masks/test/2.png").unlink(), "seg/test/2.jpg", "has no mask"),
        (lambda r: (r / "test/2.jpg").unlink(), "2.jpg", "not in"),
        (lambda r: (r / "pool/a/notes.txt").write_bytes(b"x"), "notes.txt", "no image"),
    ],
)
def test_faults_name_their_file(
    own: dict[str, Any], tmp_path: Path, fault: Any, file: str, said: str
) -> None:
    fault(tmp_path / "mine")
    with pytest.raises(KdepError, match=said) as e:
        run(own, tmp_path)
    assert file in str(e.value)


def test_paths_relative_to_the_root(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDEP_DATA", str(tmp_path))
    assert run({"pool": "mine/pool"}, tmp_path)["counts"]["images"] == {"pool": 4}
    with pytest.raises(KdepError, match="mine/pol of the data config does not exist"):
        run({"pool": "mine/pol"}, tmp_path, "b")


def test_an_upright_image_passes(tmp_path: Path) -> None:
    check_upright(tiny.save(tmp_path / "a.jpg", tiny.picture(np.random.default_rng(0))))

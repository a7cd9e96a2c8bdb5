"""Every task loads exactly the images that its data check counted, and no other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from kdep_bench.errors import KdepError
from kdep_bench.transfer.counts import SplitCount, compare, trained_images
from tests.transfer.test_transfer_tasks import error_of, run_stage, task_config


@pytest.fixture
def data_copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data tree that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "data_copy" / "data"))


def save_half_as_webp(folder: Path) -> int:
    """Replaces every second image by a .webp file and adds files that are not part of the data.

    Returns the number of images.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files[::2]:
        Image.open(path).save(path.with_suffix(".webp"))
        path.unlink()
    (folder / ".cache").mkdir()
    shutil.copy(files[1], folder / ".cache" / "copy.jpg")
    (folder / "Thumbs.db").write_bytes(b"x")
    return len(files)


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["probe", "finetune"])
def test_webp_images_are_loaded_and_a_hidden_folder_is_not_a_class(
    kind, data_copy, exported, student, tmp_path, in_subprocess
):
    n_images = save_half_as_webp(data_copy / "classify" / "train")
    task = task_config(kind)
    if kind == "probe":
        task["recipe"]["train_share"] = 1.0  # train on all images
    outputs = in_subprocess(run_stage, task, student, 0, data_copy, exported, tmp_path / "t")
    assert len(outputs["per_class"]) == 8
    if kind == "probe":
        assert f"{n_images} training images" in outputs["notes"][0]


def test_an_image_that_only_the_toolkit_counts_is_refused(
    data_copy, exported, student, tmp_path, in_subprocess
):
    """A scene in a hidden folder, which mmseg loads and the data check leaves out."""
    for part, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
        source = next((data_copy / "cityscapes" / part / "test").rglob(f"*_{suffix}.png"))
        target = data_copy / "cityscapes" / part / "test" / ".old" / source.name
        target.parent.mkdir()
        shutil.copy(source, target)
    args = (task_config("seg"), student, 0, data_copy, exported, tmp_path / "t")
    message = in_subprocess(error_of, *args)
    folder = (data_copy / "cityscapes" / "leftImg8bit" / "test").resolve()
    assert f"loads 9 images of the split test, but {folder} contains 8" in message
    for part in ("leftImg8bit", "gtFine"):  # the fix: move it out
        shutil.rmtree(data_copy / "cityscapes" / part / "test" / ".old")
    task = task_config("seg", iters=2, warmup=1)
    assert in_subprocess(run_stage, task, *args[1:])["value"] >= 0


@pytest.mark.e2e
def test_training_images_without_boxes_are_left_out_and_noted(
    data_copy, exported, student, tmp_path, in_subprocess
):
    path = data_copy / "detect" / "annotations" / "train.json"
    table = json.loads(path.read_text())
    first = table["images"][0]["id"]
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] != first]
    path.write_text(json.dumps(table))
    task = task_config("det", iters=2, warmup=1)
    outputs = in_subprocess(run_stage, task, student, 0, data_copy, exported, tmp_path / "t")
    assert "1 of 8 training images are left out: 1 without a box" in outputs["notes"]


def test_training_images_that_are_left_out_are_counted_by_reason() -> None:
    """Image 0 is kept, 1 has a box of an unknown class, 2 no box, and 3 is 10 pixels high."""
    images = [{"id": i, "width": 100, "height": 10 if i == 3 else 80} for i in range(4)]
    boxes = [{"image_id": 0, "category_id": 1}, {"image_id": 3, "category_id": 1}]
    boxes.append({"image_id": 1, "category_id": 2})
    table = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    kept, note = trained_images(table, ["a"], 16)
    assert kept == 1
    assert note == "3 of 4 training images are left out: 1 under 16 pixels, 2 without a box"


def test_a_loader_without_an_image_count_is_refused(tmp_path: Path) -> None:
    count = SplitCount("train", "train", 3, tmp_path)
    assert compare("t", [count], {"train": 3}) == []  # no problem
    with pytest.raises(KdepError, match="returned no image count for its test data"):
        compare("t", [count], {"train": 3, "test": 2})
    with pytest.raises(KdepError, match="loads 2 images of the split train"):
        compare("t", [count], {"train": 2})

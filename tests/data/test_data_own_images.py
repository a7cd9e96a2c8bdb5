"""Stage `prepare` checks all user images; the views read them as upright 8-bit RGB images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_fixture as own
import pytest
from PIL import Image

from kdep_bench.data import images, views
from kdep_bench.data.official import tiny
from kdep_bench.data.own import check_plan
from kdep_bench.errors import KdepError
from kdep_bench.results.report import data_card

Spec = dict[str, Any]
VIEWS = {"views": 1, "px": 16, "seed": 0, "scale": [0.3, 1.0], "ratio": [0.75, 4 / 3]}


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """The user's folder with the data set."""
    return tmp_path / "mine"


@pytest.fixture
def spec(user_folder: Path) -> Spec:
    """The spec of the small user data set."""
    return own.make(user_folder)


def random_image(seed: int) -> np.ndarray:
    """A random image with a fixed seed."""
    return tiny.noise_image(np.random.default_rng(1000 + seed))


def test_a_broken_image_anywhere_in_the_pool_is_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
):
    for i in range(100):
        tiny.save(user_folder / "pool" / "c" / f"{i:03}.png", random_image(i))
    broken = user_folder / "pool" / "c" / "089.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(KdepError, match=f"{broken} is truncated") as caught:
        own.run(spec, tmp_path / "out")
    assert str(tmp_path / "out") not in str(caught.value)
    tiny.save(broken, random_image(89))  # the advised fix: copy it again
    assert own.run(spec, tmp_path / "again")["counts"]["images"]["pool"] == 104


def test_a_dangling_link_in_the_pool_is_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    link = user_folder / "pool" / "z.png"
    link.symlink_to(user_folder / "nowhere.png")
    with pytest.raises(KdepError, match=f"{link} is a link to {user_folder}/nowhere.png"):
        own.run(spec, tmp_path / "out")
    link.unlink()
    own.run(spec, tmp_path / "again")


def test_cmyk_alpha_and_other_formats_of_the_pool_become_rgb_and_are_counted(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    pool = user_folder / "pool"
    Image.fromarray(random_image(0)).convert("CMYK").save(pool / "p089.jpg")
    Image.fromarray(random_image(1)).save(pool / "a.webp")
    Image.fromarray(random_image(2)).convert("RGBA").save(pool / "alpha.png")
    outputs = own.run(spec, tmp_path / "out")
    assert outputs["counts"]["images"]["pool"] == 7
    assert outputs["card"]["pool"]["normalised"] == {
        "CMYK": 1,
        "WEBP file": 1,
        images.ALPHA: 1,
    }
    (tmp_path / "views").mkdir()
    rendered = views.run(VIEWS, {"prepare": tmp_path / "out"}, tmp_path / "views", lambda *_: None)
    assert rendered["images"] == 7
    for file in (tmp_path / "out/data/pool/images").rglob("*.*"):
        with Image.open(file) as image:
            assert image.mode in ("RGB", "L"), file


def test_a_name_that_is_not_utf8_reaches_the_views(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    old = next((user_folder / "pool" / "a").iterdir())
    old.rename(old.with_name(os.fsdecode(b"lat\xe9.jpg")))
    own.run(spec, tmp_path / "out")
    (tmp_path / "views").mkdir()
    rendered = views.run(VIEWS, {"prepare": tmp_path / "out"}, tmp_path / "views", lambda *_: None)
    assert rendered["images"] == 4
    listed = json.loads((tmp_path / "views" / views.LISTING).read_text())["files"]
    assert "a/lat%E9.jpg" in listed


@pytest.mark.parametrize(("part", "key"), [("coco", "json"), ("masks", "images")])
def test_two_splits_with_the_same_path_are_refused(
    spec: Spec, tmp_path: Path, part: str, key: str
) -> None:
    check_plan({"name": "x", **spec}, [])
    path = spec[part]["train"][key]
    spec[part]["test"] = dict(spec[part]["train"])
    with pytest.raises(KdepError, match=path):
        own.run(spec, tmp_path / "out")
    spec[part]["test"][key] = str(Path(path).parent / "x" / ".." / Path(path).name)
    with pytest.raises(KdepError, match=f"for two splits of `{part}`: train and test"):
        check_plan({"name": "x", **spec}, [])  # before anything runs


def test_the_plan_refuses_two_splits_with_the_same_folder_of_classes(spec: Spec) -> None:
    spec["classify"]["val"] = spec["classify"]["train"]
    with pytest.raises(KdepError, match="for two splits of `classify`: train and val"):
        check_plan({"name": "x", **spec}, [])


def test_an_image_that_is_in_the_json_of_two_splits_is_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    spec["coco"]["test"]["images"] = spec["coco"]["train"]["images"]
    with pytest.raises(KdepError, match=f"share 3 image files, such as {user_folder}/train/0.jpg"):
        own.run(spec, tmp_path / "out")
    allowed = {**spec, "allow_duplicates": [["coco/train", "coco/test"]]}  # the fix
    assert "detect" not in own.run(allowed, tmp_path / "again")["task_notes"]


def test_a_note_with_the_score_lists_equal_and_similar_images_of_two_splits(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(user_folder / "train" / "2.jpg", user_folder / "test" / "0.jpg")
    Image.open(user_folder / "pool" / "a" / "0.jpg").resize((64, 48)).save(
        user_folder / "seg" / "test" / "1.jpg", quality=60
    )
    outputs = own.run(spec, tmp_path / "out")
    assert outputs["task_notes"] == {
        "detect": [
            "1 of 3 images of test is also in train (1 equal file), such as test/0.jpg and "
            "train/2.jpg"
        ],
        "cityscapes": [
            "1 of 3 images of test is also in pool (1 near duplicate), such as test/1.jpg and "
            "a/0.jpg"
        ],
    }
    data_card.write(tmp_path, "mine", outputs)
    table = (tmp_path / "data_card.md").read_text()
    assert "## Images in two sets" in table
    assert "| coco/test | coco/train | 1 | 0 | test/0.jpg = train/2.jpg | no |" in table
    allow = [["pool", "masks/test"], ["coco/test", "coco/train"]]
    waived = own.run({**spec, "allow_duplicates": allow}, tmp_path / "waived")
    assert waived["task_notes"] == {}
    assert [row["allowed"] for row in waived["card"]["shared_images"]] == [True, True]


def test_the_plan_refuses_an_unknown_set_in_allow_duplicates(spec: Spec) -> None:
    with pytest.raises(KdepError, match="did you mean coco/test"):
        check_plan({"name": "x", **spec, "allow_duplicates": [["pool", "coco/tst"]]}, [])
    check_plan({"name": "x", **spec, "allow_duplicates": [["pool", "coco/test"]]}, [])


@pytest.mark.parametrize("part", ["coco", "masks"])
def test_an_exif_rotated_image_with_labels_is_used_upright_or_refused(
    spec: Spec, user_folder: Path, tmp_path: Path, part: str
) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    file = user_folder / ("train" if part == "coco" else "seg/train") / "0.jpg"
    upright = Image.open(file)
    upright.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=95)
    outputs = own.run(spec, tmp_path / "out")  # the labels have the upright size
    assert images.EXIF_ROTATED in str(outputs["card"])
    name = "detect/train/0.jpg.png"
    if part == "masks":
        name = "cityscapes/leftImg8bit/train/own/0_leftImg8bit.png"
    path = tmp_path / "out/data" / name
    pixels = images.read_rgb(path)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 12
    upright.save(file, exif=exif)  # the labels have the stored size, so the orientation is unclear
    with pytest.raises(KdepError, match=f"{file} has the EXIF orientation 6"):
        own.run(spec, tmp_path / "again")
    upright.resize((30, 20)).save(file, exif=exif)  # the labels have neither size
    with pytest.raises(KdepError, match="copy both again") as caught:
        own.run(spec, tmp_path / "other size")
    assert "20x30" in str(caught.value)
    assert "EXIF" not in str(caught.value)

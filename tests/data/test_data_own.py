"""Stage `prepare` for user data: files are where the tasks read them; fixes in errors work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_fixture as own
import pytest
from own_fixture import change_masks, edit
from PIL import Image

from kdep_bench.data.checks import check_coco, check_segmentation
from kdep_bench.data.official import tiny
from kdep_bench.data.own.coco_json import read_boxes
from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults

Spec = dict[str, Any]


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """The user's folder with the data set."""
    return tmp_path / "mine"


@pytest.fixture
def spec(user_folder: Path) -> Spec:
    """The spec of the small user data set."""
    return own.make(user_folder)


def refusal(spec: Spec, out: Path) -> str:
    """The error of `prepare`; asserts that it advises no deletion and names no link."""
    with pytest.raises(KdepError) as error:
        own.run(spec, out)
    text = str(error.value)
    assert "delete" not in text
    assert str(out) not in text  # it names the user's file, not the link to it
    return text


# ---- the layout ----


def test_files_are_where_the_tasks_read_them(spec: Spec, tmp_path: Path) -> None:
    outputs = own.run({**spec, "pool_labels": True}, tmp_path / "out")
    data = tmp_path / "out" / "data"
    assert outputs["counts"]["images"] == {
        "pool": 4,
        **{f"{part}/{s}": n for part, n in (("classify", 4), ("detect", 3), ("cityscapes", 3))
           for s in own.SPLITS},
    }  # fmt: skip
    for split in own.SPLITS:
        check_coco(data / "detect/annotations" / f"{split}.json", data / "detect" / split)
        assert sorted(p.name for p in (data / "classify" / split).iterdir()) == ["a", "b"]
    assert check_segmentation(data / "cityscapes", 2, own.SPLITS) == {"train": 3, "test": 3}
    labels = json.loads((data / "pool/labels.json").read_text())
    assert labels["classes"] == ["a", "b"]
    assert labels["labels"] == {"a/0.jpg": 0, "a/2.jpg": 0, "b/1.jpg": 1, "b/3.jpg": 1}
    assert all((data / "pool/images" / n).is_file() for n in labels["labels"])


def test_each_box_keeps_its_image_class_and_coordinates(spec: Spec, tmp_path: Path) -> None:
    own.run(spec, tmp_path / "out")
    table = json.loads((tmp_path / "out/data/detect/annotations/test.json").read_text())
    names = {c["id"]: c["name"] for c in table["categories"]}
    files = {i["id"]: i["file_name"] for i in table["images"]}
    boxes = {
        files[a["image_id"]]: (names[a["category_id"]], a["bbox"]) for a in table["annotations"]
    }
    assert boxes == {
        "0.jpg": ("cat", [1, 2, 9, 9]),
        "1.jpg": ("dog", [1, 2, 10, 9]),
        "2.jpg": ("cat", [1, 2, 11, 9]),
    }
    assert list(names.values()) == ["cat", "dog"]


def test_the_fingerprint_depends_only_on_the_content_of_the_data(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    fingerprints = {own.run(spec, tmp_path / "a")["fingerprint"]}
    fingerprints.add(own.run(spec, tmp_path / "b")["fingerprint"])
    assert len(fingerprints) == 1
    path = user_folder / "masks/test/0.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[20, 3] = 1
    Image.fromarray(pixels).save(path)
    fingerprints.add(own.run(spec, tmp_path / "c")["fingerprint"])
    edit(user_folder / "test.json", lambda t: t["annotations"][0].update(category_id=3))
    fingerprints.add(own.run(spec, tmp_path / "d")["fingerprint"])
    image_path = user_folder / "pool/a/0.jpg"
    tiny.save(image_path, tiny.noise_image(np.random.default_rng(9)))
    fingerprints.add(own.run(spec, tmp_path / "e")["fingerprint"])
    assert len(fingerprints) == 4


def test_paths_are_relative_to_the_data_root(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDEP_DATA", str(tmp_path))
    outputs = own.run({"pool": "mine/pool"}, tmp_path / "a")
    assert outputs["counts"]["images"] == {"pool": 4}
    assert "mine/pol of the data config (pool) does not exist" in refusal(
        {"pool": "mine/pol"}, tmp_path / "b"
    )


# ---- faults, and the fixes that their errors advise ----


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Changes the text of a file."""
    path.write_text(change(path.read_text()))


def image_changer(name: str) -> Callable[[Path, Callable[[Image.Image], Image.Image]], None]:
    """A function that applies another function to the image file `name` below a folder."""

    def change(root: Path, function: Callable[[Image.Image], Image.Image]) -> None:
        function(Image.open(root / name)).save(root / name)

    return change


change_first_mask = image_changer("masks/test/0.png")


def make_mask_one_bit(root: Path) -> None:
    """Stores the mask with one bit per pixel."""
    change_first_mask(root, lambda m: Image.fromarray(np.asarray(m) == 1))


def make_mask_four_bits(root: Path) -> None:
    """Writes a grey PNG of 4 bits byte by byte, because Pillow and OpenCV cannot write one."""
    import struct
    import zlib

    pixels = np.asarray(Image.open(root / "masks/test/0.png")) == 1
    rows = (pixels[:, ::2].astype(np.uint8) << 4) | pixels[:, 1::2]  # two pixels per byte
    raw = b"".join(b"\0" + row.tobytes() for row in rows)  # 0: the row has no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 64, 48, 4, 0, 0, 0, 0)  # width, height, bits, grey, defaults
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (root / "masks/test/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def drop_class(root: Path) -> None:
    """Removes the only training box of a class."""
    edit(root / "train.json", lambda t: t["annotations"].pop(1))


def drop_cats(table: Any) -> None:
    """Removes every annotation of the class 7."""
    table["annotations"] = [a for a in table["annotations"] if a["category_id"] != 7]


def mark_all_crowd(table: Any) -> None:
    """Marks every annotation as a crowd."""
    for a in table["annotations"]:
        a["iscrowd"] = 1


def mark_none_crowd(table: Any) -> None:
    """Marks no annotation as a crowd."""
    for a in table["annotations"]:
        a["iscrowd"] = 0


def to_fractions(table: Any) -> None:
    """Gives boxes as fractions of the image size, without areas."""
    for a in table["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"], a["area"] = [x / 64, y / 48, w / 64, h / 48], None


def to_pixels(table: Any) -> None:
    """Gives boxes in pixels again."""
    for a in table["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x * 64, y * 48, w * 64, h * 48]


def make_masks_binary(root: Path) -> None:
    """Stores the labels as 0 and 255."""
    change_masks(root / "masks", lambda m: np.where(m == 1, 255, 0).astype(np.uint8))


def replace_255_by_1(root: Path) -> None:
    """Replaces the ignored label by 1."""
    change_masks(root / "masks", lambda m: np.where(m == 255, 1, m).astype(np.uint8))


def set_palette(root: Path, colours: list[int], name: str = "test/0") -> None:
    """Gives the mask a palette."""
    path = root / f"masks/{name}.png"
    image = Image.fromarray(np.asarray(Image.open(path)))
    image.putpalette(colours + [0] * (768 - len(colours)))
    image.save(path)


def set_two_palettes(root: Path) -> None:
    """Gives two masks different palettes."""
    set_palette(root, [0, 0, 0, 255, 0, 0], "test/0")
    set_palette(root, [0, 0, 0, 0, 255, 0], "test/1")


def change_test_annotation(**change: Any) -> Callable[[Path], None]:
    """A function that changes the second annotation of the test split."""
    return lambda r: edit(r / "test.json", lambda t: t["annotations"][1].update(change))


def change_test_image(**change: Any) -> Callable[[Path], None]:
    """A function that changes the second image of the test split."""
    return lambda r: edit(r / "test.json", lambda t: t["images"][1].update(change))


INTACT_ANNOTATION = {
    "bbox": [1, 2, 10, 9],
    "area": 81,
    "image_id": 1,
    "category_id": 3,
    "iscrowd": 0,
    "id": 1,
}
repair_box = change_test_annotation(**INTACT_ANNOTATION)
repair_image = change_test_image(file_name="1.jpg", width=64, height=48, id=1)


def rotate_by_exif(root: Path) -> None:
    """Lets the EXIF data of an image turn it by 180 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: rotated by 180 degrees
    Image.open(root / "train/0.jpg").save(root / "train/0.jpg", exif=exif)


def rotate_pixels(root: Path) -> None:
    """Turns the pixels themselves instead."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(Image.open(root / "train/0.jpg"))
    turned.save(root / "train/0.jpg")


Step = Callable[[Path], object]
JSON, TRAIN = "mine/test.json", "mine/train.json"
# Name of a case: (function that makes the fault, file that the error names, part of the error's
# text, function that does what the error advises). In the functions r is the user's folder, t the
# content of a JSON file, s its text and m a mask.
CASES: dict[str, tuple[Step, str, str, Step]] = {
    "json truncated": (
        lambda r: rewrite(r / "test.json", lambda s: s[:200]),
        JSON,
        "is truncated",
        lambda r: shutil.copy(r / "backup.json", r / "test.json"),
    ),
    "json empty": (
        lambda r: (r / "test.json").write_bytes(b""),
        JSON,
        "is truncated",
        lambda r: shutil.copy(r / "backup.json", r / "test.json"),
    ),
    "json not UTF-8": (
        lambda r: (r / "test.json").write_bytes(
            (r / "test.json").read_bytes().replace(b'"cat"', b'"c\xe9t"')
        ),
        JSON,
        "is not UTF-8",
        lambda r: shutil.copy(r / "backup.json", r / "test.json"),
    ),
    "json with NaN": (
        lambda r: rewrite(r / "test.json", lambda s: s.replace("81", "NaN", 1)),
        JSON,
        "NaN",
        lambda r: rewrite(r / "test.json", lambda s: s.replace("NaN", "81")),
    ),
    "json with a key twice": (
        lambda r: rewrite(r / "test.json", lambda s: s[:-1] + ', "annotations": []}'),
        JSON,
        "'annotations' occurs twice",
        lambda r: rewrite(r / "test.json", lambda s: s.replace(', "annotations": []}', "}")),
    ),
    "json of another kind": (
        lambda r: rewrite(r / "test.json", lambda s: f"[{s}]"),
        JSON,
        "contains a list",
        lambda r: rewrite(r / "test.json", lambda s: s[1:-1]),
    ),
    "json nested too deep": (
        lambda r: (r / "test.json").write_text("[" * 100_000),
        JSON,
        "nested too deep",
        lambda r: shutil.copy(r / "backup.json", r / "test.json"),
    ),
    "a number of 5000 digits": (
        lambda r: rewrite(r / "test.json", lambda s: s.replace("81", "9" * 5000, 1)),
        JSON,
        "not valid JSON",
        lambda r: rewrite(r / "test.json", lambda s: s.replace("9" * 5000, "81")),
    ),
    "category without name": (
        lambda r: edit(r / "test.json", lambda t: t["categories"][0].pop("name")),
        JSON,
        "has no name",
        lambda r: edit(r / "test.json", lambda t: t["categories"][0].update(name="cat")),
    ),
    "two categories of one name": (
        lambda r: edit(r / "test.json", lambda t: t["categories"].append({"id": 9, "name": "cat"})),
        JSON,
        "'cat' more than once (ids 7, 9)",
        lambda r: edit(r / "test.json", lambda t: t["categories"].pop()),
    ),
    "category names that differ by case": (
        lambda r: edit(r / "test.json", lambda t: t["categories"].append({"id": 9, "name": "Cat"})),
        JSON,
        "differ only by case",
        lambda r: edit(r / "test.json", lambda t: t["categories"].pop()),
    ),
    "a class has another name in one split": (
        lambda r: edit(r / "test.json", lambda t: t["categories"][0].update(name="cats")),
        JSON,
        "'cats' and 'cat' look like one class",
        lambda r: edit(r / "test.json", lambda t: t["categories"][0].update(name="cat")),
    ),
    "image without file_name": (
        lambda r: edit(r / "test.json", lambda t: t["images"][0].pop("file_name")),
        JSON,
        "has no file_name",
        lambda r: edit(r / "test.json", lambda t: t["images"][0].update(file_name="0.jpg")),
    ),
    "absolute file name": (
        change_test_image(file_name="/etc/1.jpg"),
        JSON,
        "'/etc/1.jpg'",
        repair_image,
    ),
    "file name of Windows": (change_test_image(file_name="C:\\1.jpg"), JSON, "'C:", repair_image),
    "file name that leaves the folder": (
        change_test_image(file_name="../test/1.jpg"),
        JSON,
        "'../test/1.jpg'",
        repair_image,
    ),
    "backslash in a file name": (
        change_test_image(file_name="a\\1.jpg"),
        JSON,
        "use / instead of \\",
        repair_image,
    ),
    "one file twice": (
        change_test_image(file_name="./0.jpg"),
        JSON,
        "of another image",
        repair_image,
    ),
    "file name with half a surrogate pair": (
        lambda r: rewrite(r / "test.json", lambda s: s.replace("1.jpg", "\\ud800.jpg")),
        JSON,
        "has the file_name",
        lambda r: rewrite(r / "test.json", lambda s: s.replace("\\ud800.jpg", "1.jpg")),
    ),
    "file name is a number": (
        change_test_image(file_name=1),
        JSON,
        "has the file_name 1",
        repair_image,
    ),
    "width is a text": (change_test_image(width="64"), JSON, "width '64'", repair_image),
    "width is null": (change_test_image(width=None), JSON, "has no width and", repair_image),
    "height is huge": (change_test_image(height=10**40), JSON, "more than 30 digits", repair_image),
    "size of another image": (change_test_image(width=63), "test/1.jpg", "64x48", repair_image),
    "image id is null": (change_test_image(id=None), JSON, "has no id", repair_image),
    "image id twice": (
        change_test_image(id=0),
        JSON,
        "the id 0 occurs twice in images",
        repair_image,
    ),
    "entry is no object": (
        lambda r: edit(r / "test.json", lambda t: t["annotations"].append(3)),
        JSON,
        "entry 3 of annotations",
        lambda r: edit(r / "test.json", lambda t: t["annotations"].pop()),
    ),
    "annotation of no image": (
        change_test_annotation(image_id=99),
        JSON,
        "image id 99",
        repair_box,
    ),
    "annotation of no class": (
        change_test_annotation(category_id=True),
        JSON,
        "id True",
        repair_box,
    ),
    "annotation of a list": (
        change_test_annotation(image_id=[1]),
        JSON,
        "image id [1]",
        repair_box,
    ),
    "box without area": (
        change_test_annotation(bbox=[1, 2, 0, 9]),
        JSON,
        "without area",
        repair_box,
    ),
    "box of texts": (
        change_test_annotation(bbox=["1", 2, 3, 4]),
        JSON,
        "['1', 2, 3, 4]",
        repair_box,
    ),
    "box is null": (change_test_annotation(bbox=None), JSON, "has no bbox", repair_box),
    "box outside": (
        change_test_annotation(bbox=[60, 2, 9, 9]),
        JSON,
        "outside its image",
        repair_box,
    ),
    "box is huge": (
        change_test_annotation(bbox=[0, 0, 10**400, 9]),
        JSON,
        "four numbers",
        repair_box,
    ),
    "area beyond the image": (
        change_test_annotation(area=10**12),
        JSON,
        "area 1000000000000",
        repair_box,
    ),
    "iscrowd is a text": (change_test_annotation(iscrowd="0"), JSON, "iscrowd '0'", repair_box),
    "boxes as fractions": (
        lambda r: edit(r / "test.json", to_fractions),
        JSON,
        "within 1 x 1 pixel",
        lambda r: edit(r / "test.json", to_pixels),
    ),
    "no training boxes": (
        lambda r: edit(r / "train.json", lambda t: t.update(annotations=[])),
        TRAIN,
        "has no annotations",
        lambda r: shutil.copy(r / "backup_train.json", r / "train.json"),
    ),
    "no test boxes": (
        lambda r: edit(r / "test.json", lambda t: t.update(annotations=[])),
        JSON,
        "boxes with iscrowd 0 for the score",
        lambda r: shutil.copy(r / "backup.json", r / "test.json"),
    ),
    "all boxes are crowds": (
        lambda r: edit(r / "test.json", mark_all_crowd),
        JSON,
        "all 3 annotations",
        lambda r: edit(r / "test.json", mark_none_crowd),
    ),
    "a class that is scored and not trained": (
        drop_class,
        TRAIN,
        "no box of 'dog' to train on",
        lambda r: shutil.copy(r / "backup_train.json", r / "train.json"),
    ),
    "the untrained class removed from the test split": (
        drop_class,
        JSON,
        "remove the class from test.json",
        lambda r: edit(r / "test.json", lambda t: t["annotations"].pop(1)),
    ),
    "box image missing": (
        lambda r: (r / "test/2.jpg").rename(r / "2.jpg"),
        JSON,
        "1 of 3 images named in",
        lambda r: (r / "2.jpg").rename(r / "test/2.jpg"),
    ),
    "box image with EXIF turn": (
        rotate_by_exif,
        "train/0.jpg",
        "EXIF orientation 3",
        rotate_pixels,
    ),
    "pool image empty": (
        lambda r: (r / "pool/a/0.jpg").write_bytes(b""),
        "pool/a/0.jpg",
        "0 bytes",
        lambda r: shutil.copy(r / "pool/a/2.jpg", r / "pool/a/0.jpg"),
    ),
    "pool image broken": (
        lambda r: (r / "pool/a/0.jpg").write_bytes((r / "pool/a/0.jpg").read_bytes()[:400]),
        "pool/a/0.jpg",
        "truncated",
        lambda r: shutil.copy(r / "pool/a/2.jpg", r / "pool/a/0.jpg"),
    ),
    "pool link to nothing": (
        lambda r: (r / "pool/z.png").symlink_to(r / "nowhere.png"),
        "pool/z.png",
        "does not exist",
        lambda r: (r / "pool/z.png").rename(r / "z.png"),
    ),
    "pool file of another kind": (
        lambda r: (r / "pool/list.csv").write_text("a,b"),
        "pool/list.csv",
        "not have an image suffix",
        lambda r: (r / "pool/list.csv").rename(r / "list.csv"),
    ),
    "mask missing": (
        lambda r: (r / "masks/test/2.png").rename(r / "2.png"),
        "seg/test/2.jpg",
        "has no mask",
        lambda r: (r / "2.png").rename(r / "masks/test/2.png"),
    ),
    "mask of another size": (
        lambda r: change_first_mask(r, lambda m: m.resize((32, 24), Image.Resampling.NEAREST)),
        "masks/test/0.png",
        "is 32x24",
        lambda r: change_first_mask(r, lambda m: m.resize((64, 48), Image.Resampling.NEAREST)),
    ),
    "mask value beyond the classes": (
        lambda r: change_first_mask(r, lambda m: Image.fromarray(np.full((48, 64), 9, np.uint8))),
        "masks/test/0.png",
        "the values 9",
        lambda r: shutil.copy(r / "masks/test/1.png", r / "masks/test/0.png"),
    ),
    "mask of 1 bit": (
        make_mask_one_bit,
        "masks/test/0.png",
        "Image.open(f).convert('L').point(lambda v: v // 255).save(f)",
        lambda r: change_first_mask(
            r, lambda m: m.convert("L").point([v // 255 for v in range(256)])
        ),
    ),
    "mask of 4 bits": (
        make_mask_four_bits,
        "masks/test/0.png",
        "Image.open(f).point(lambda v: v * 15 // 255).save(f)",
        lambda r: change_first_mask(r, lambda m: m.point([v * 15 // 255 for v in range(256)])),
    ),
    "mask of 16 bits": (
        lambda r: change_first_mask(r, lambda m: Image.fromarray(np.asarray(m).astype(np.uint16))),
        "masks/test/0.png",
        "16 bits",
        lambda r: change_first_mask(r, lambda m: Image.fromarray(np.asarray(m).astype("uint8"))),
    ),
    "mask of three channels": (
        lambda r: change_first_mask(r, lambda m: m.convert("RGB")),
        "masks/test/0.png",
        "Image.open(f).getchannel(0).save(f)",
        lambda r: change_first_mask(r, lambda m: m.getchannel(0)),
    ),
    "masks with different palettes": (
        set_two_palettes,
        "masks/test/1.png",
        "the value 1 has the colour (0, 255, 0)",
        lambda r: set_palette(r, [0, 0, 0, 255, 0, 0], "test/1"),
    ),
    "masks with 0 and 255 for two classes": (
        make_masks_binary,
        "masks/train",
        "replace 255, which means 'ignore', by 1",
        replace_255_by_1,
    ),
    "masks of the test split all ignored": (
        lambda r: change_masks(r / "masks/test", lambda m: np.full_like(m, 255)),
        "masks/test",
        "are 255, which is ignored",
        lambda r: change_masks(
            r / "masks/test", lambda m: (np.arange(m.size) % 2).reshape(m.shape).astype(np.uint8)
        ),
    ),
    "masks of the test split with one class": (
        lambda r: change_masks(r / "masks/test", lambda m: np.zeros_like(m)),
        "masks/test",
        "have the class 'x'",
        lambda r: change_first_mask(r, lambda m: Image.fromarray(np.eye(48, 64, dtype=np.uint8))),
    ),
    "two images with one mask": (
        lambda r: shutil.copy(r / "seg/test/0.jpg", r / "seg/test/0.png"),
        "seg/test/0.png have the same mask",
        "masks/test/0.png",
        lambda r: [
            (r / "seg/test/0.png").rename(r / "seg/test/9.png"),
            shutil.copy(r / "masks/test/0.png", r / "masks/test/9.png"),
        ],
    ),
    "class folder missing in the test split": (
        lambda r: (r / "classes/test/b").rename(r / "b"),
        "classes/test",
        "",
        lambda r: (r / "b").rename(r / "classes/test/b"),
    ),
    "additional class folder in the test split": (
        lambda r: shutil.copytree(r / "classes/test/b", r / "classes/test/c"),
        "the classes of train and test differ: only ",
        "classes/test has 'c'",
        lambda r: (r / "classes/test/c").rename(r / "c"),
    ),
    "class folder empty": (
        lambda r: (r / "classes/train/c").mkdir(),
        "classes/train/c",
        "contains no image",
        lambda r: (r / "classes/train/c").rename(r / "c"),
    ),
    "class folders that differ by case": (
        lambda r: [shutil.copytree(r / f"classes/{s}/a", r / f"classes/{s}/A") for s in own.SPLITS],
        "classes/train",
        "'A' and 'a'",
        lambda r: [(r / f"classes/{s}/A").rename(r / f"classes/{s}/other") for s in own.SPLITS],
    ),
    "class folder with a space": (
        lambda r: (r / "classes/test/a").rename(r / "classes/test/a "),
        "classes/test/a ",
        "spaces around its name",
        lambda r: (r / "classes/test/a ").rename(r / "classes/test/a"),
    ),
    "image beside the class folders": (
        lambda r: shutil.copy(r / "classes/test/a/0.png", r / "classes/test/0.png"),
        "classes/test/0.png",
        "is not in a class folder",
        lambda r: (r / "classes/test/0.png").rename(r / "classes/test/a/9.png"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_gives_an_error_that_names_the_file_with_a_fix_that_works(
    name: str, spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    fault, file, message, fix = CASES[name]
    for split, backup in (("test", "backup.json"), ("train", "backup_train.json")):
        shutil.copy(user_folder / f"{split}.json", user_folder / backup)
    fault(user_folder)
    text = refusal(spec, tmp_path / "a")
    assert file in text
    assert message in text
    fix(user_folder)
    own.run(spec, tmp_path / "b")


def test_a_pool_with_labels_must_have_at_least_two_class_folders(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    labelled = {"pool": spec["pool"], "pool_labels": True}
    shutil.copy(user_folder / "pool/a/0.jpg", user_folder / "pool/loose.jpg")
    assert "is not in a class folder" in refusal(labelled, tmp_path / "a")
    (user_folder / "pool/loose.jpg").rename(user_folder / "pool/a/9.jpg")
    (user_folder / "pool/b").rename(user_folder / "b")
    assert "only one class, 'a'" in refusal(labelled, tmp_path / "b")
    assert own.run({"pool": spec["pool"]}, tmp_path / "c")["counts"]["images"] == {"pool": 3}
    (user_folder / "pool/a").rename(user_folder / "pool/train")
    (user_folder / "b").rename(user_folder / "pool/val")
    text = refusal(labelled, tmp_path / "d")
    assert "'train', 'val', which are splits and not classes" in text
    (user_folder / "pool/val").rename(user_folder / "pool/valley")
    own.run(labelled, tmp_path / "e")


def test_hidden_folders_of_the_pool_are_counted_and_are_no_classes(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    for folder in (user_folder / "pool/.cache", user_folder / "classes/train/.cache"):
        folder.mkdir()
        shutil.copy(user_folder / "pool/a/0.jpg", folder)
    (user_folder / "classes/test/a/Thumbs.db").write_bytes(b"x")
    (user_folder / "classes/test/a/._0.png").write_bytes(b"x")
    outputs = own.run({**spec, "pool_labels": True}, tmp_path / "out")
    data = tmp_path / "out/data"
    assert json.loads((data / "pool/labels.json").read_text())["classes"] == ["a", "b"]
    assert outputs["card"]["pool"]["passed_over"] == {"hidden folder(s)": 1}
    for split in own.SPLITS:  # mmpretrain's loader has no rule for hidden files
        files = [Path(b, f).name for b, _, fs in os.walk(data / "classify" / split) for f in fs]
        assert sorted(files) == ["0.png", "0.png", "1.png", "1.png"]


def test_an_image_in_two_classes_is_counted_and_listed(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(user_folder / "classes/test/a/0.png", user_folder / "classes/test/b/again.png")
    outputs = own.run(spec, tmp_path / "out")
    duplicates = outputs["card"]["classify"]["in_two_classes"]
    assert duplicates["count"] == 1
    assert duplicates["files"] == [["test/a/0.png", "test/b/again.png"]]
    assert "1 images are in two classes" in outputs["task_notes"]["classify"][0]
    shutil.copy(user_folder / "pool/a/0.jpg", user_folder / "pool/b/again.jpg")
    outputs = own.run({"pool": spec["pool"], "pool_labels": True}, tmp_path / "labelled")
    assert outputs["card"]["pool"]["in_two_classes"] == {
        "count": 1,
        "files": [["pool/a/0.jpg", "pool/b/again.jpg"]],
    }


def test_one_error_reports_every_fault_once(spec: Spec, user_folder: Path, tmp_path: Path) -> None:
    CASES["json truncated"][0](user_folder)
    CASES["mask of 1 bit"][0](user_folder)
    CASES["pool image empty"][0](user_folder)
    CASES["class folder empty"][0](user_folder)
    text = refusal(spec, tmp_path / "a")
    for name in ("json truncated", "mask of 1 bit", "pool image empty", "class folder empty"):
        assert text.count(CASES[name][2]) == 1
        assert CASES[name][1] in text
    wrong_annotations = [
        {"id": i, "image_id": 0, "category_id": 7, "bbox": None} for i in range(500)
    ]
    own.write(user_folder / "test.json", {**json.loads((user_folder / "train.json").read_text()),
                                   "annotations": wrong_annotations})  # fmt: skip
    text = refusal(spec, tmp_path / "b")
    assert "(498 more of this kind)" in text  # two of the 500 are shown
    assert text.count("\n") <= 11  # the error stays short


def test_wrong_keys_of_images_and_annotations_are_reported_together(tmp_path):
    """Otherwise each corrected key would only lead to the error for the next one."""
    path, faults = tmp_path / "boxes.json", Faults()
    annotation = {"id": 1, "image": 1, "class_id": 1, "box": [1, 2, 3, 4]}
    images, categories = [{"id": 1, "name": "a.jpg", "w": 9}], [{"id": 1, "name": "dog"}]
    path.write_text(
        json.dumps({"images": images, "categories": categories, "annotations": [annotation]})
    )
    read_boxes(path, tmp_path, faults)
    text = str(faults.error("x"))
    for key in ("file_name", "width and no height", "image_id", "category_id", "bbox"):
        assert f"has no {key}" in text
    assert len(faults) == 5


def test_a_byte_order_mark_in_a_json_changes_nothing(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    before = own.run(spec, tmp_path / "a")["fingerprint"]
    path = user_folder / "test.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert own.run(spec, tmp_path / "b")["fingerprint"] == before


def test_a_class_without_training_labels_is_accepted_and_noted_if_allow_absent_names_it(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    drop_class(user_folder)
    change_masks(user_folder / "masks/train", lambda m: np.where(m == 1, 2, m).astype(np.uint8))
    change_masks(user_folder / "masks/test", lambda m: np.where(m == 1, 2, m).astype(np.uint8))
    allowed = {**spec, "classes": ["x", "y", "z"], "allow_absent": ["y", "dog"]}
    notes = own.run(allowed, tmp_path / "a")["task_notes"]
    assert "train has no box of 'dog' (allowed by the data config)" in notes["detect"]
    assert "train has no pixel of 'y' (allowed by the data config)" in notes["cityscapes"]
    text = refusal({**allowed, "allow_absent": ["y", "dgo"]}, tmp_path / "b")
    assert "did you mean dog" in text


def test_a_note_names_a_class_without_boxes_in_the_test_split(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    edit(user_folder / "test.json", lambda t: [t["annotations"].pop(1), t["categories"].pop(1)])
    notes = own.run(spec, tmp_path / "a")["task_notes"]["detect"]
    assert notes == ["test has no box of 'dog': its AP is the mean over the other 1 of 2 classes"]


def test_the_card_counts_boxes_pixels_and_images(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    change_test_annotation(iscrowd=1)(user_folder)
    no_dog = {"cat": 2, "dog": 0}  # boxes of crowds are not counted
    shutil.copy(user_folder / "pool/a/0.jpg", user_folder / "pool/a/again.jpg")
    Image.open(user_folder / "pool/b/1.jpg").convert("CMYK").save(user_folder / "pool/b/1.jpg")
    card = own.run(spec, tmp_path / "a")["card"]
    assert card["detect"]["splits"]["test"]["boxes"] == no_dog
    assert card["detect"]["splits"]["test"]["crowds"] == 1
    assert card["detect"]["splits"]["train"]["boxes"] == {"cat": 2, "dog": 1}
    rows = 10 + 11 + 12  # rows of the value 1 in the three masks; each last row is ignored
    pixels = card["segment"]["splits"]["test"]
    assert pixels["pixels"] == {"x": 3 * 47 * 64 - rows * 64, "y": rows * 64}
    assert pixels["ignored_pixels"] == 3 * 64
    assert card["classify"]["splits"]["train"]["images"] == 4
    assert card["classify"]["splits"]["train"]["by_class"] == {"a": 2, "b": 2}
    assert card["pool"]["equal_files"] == 1
    assert card["pool"]["normalised"] == {"CMYK": 1}
    assert card["pool"]["width"] == [64, 64]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": None}, "no `pool`"),
        ({"coco": {"train": "train.json"}}, "coco.train = "),
        ({"coco": {"train": {"json": "x"}}}, "coco.train of the data config has the keys ['json']"),
        ({"coco": ["train"]}, "one entry per split"),
        ({"masks": {"train": {"images": 3, "masks": "x"}}}, "masks.train.images = 3"),
        ({"classes": "xy"}, "classes = 'xy'"),
        ({"classes": ["x", "x"]}, "more than once"),
        ({"classes": ["x"]}, "has 1 names"),
        ({"classes": None}, "no `classes`"),
        ({"classes": ["x", "x "]}, "without spaces"),
        ({"allow_absent": "dog"}, "allow_absent = 'dog'"),
        ({"classify": {"../a": "x"}}, "cannot be used as a file name"),
        ({"clasify": {}}, "did you mean classify"),
    ],
)
def test_an_invalid_value_in_a_data_config_gives_an_error_that_names_its_key(
    change: Spec, message: str, spec: Spec, tmp_path: Path
) -> None:
    assert message in refusal({**spec, **change}, tmp_path / "a")


def test_the_doctor_reads_every_image_of_own_data(spec: Spec, user_folder: Path) -> None:
    from kdep_bench.cli.doctor import _check_own_data

    for i in range(100):
        shutil.copy(user_folder / "pool/a/0.jpg", user_folder / f"pool/a/{i:03}.jpg")
    assert _check_own_data({"type": "x", "name": "mine", "labels": False, **spec}).startswith(
        "104 pool"
    )
    path = user_folder / "pool/a/090.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(KdepError, match=r"pool/a/090\.jpg"):
        _check_own_data({"type": "x", "name": "mine", **spec})


def test_images_and_masks_in_the_same_folder_are_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    both = str(user_folder / "masks/test")
    masks = {**spec["masks"], "test": {"images": both, "masks": both}}
    assert "are in the same folder" in refusal({**spec, "masks": masks}, tmp_path / "a")


def test_two_splits_with_the_same_folder_or_json_are_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    same = {"train": spec["classify"]["train"], "test": spec["classify"]["train"]}
    assert "is used for two splits" in refusal({**spec, "classify": same}, tmp_path / "a")
    same = {"train": spec["masks"]["train"], "test": spec["masks"]["train"]}
    assert "is used for two splits" in refusal({**spec, "masks": same}, tmp_path / "b")
    same = {"train": spec["coco"]["train"], "test": spec["coco"]["train"]}
    assert "use the same json file" in refusal({**spec, "coco": same}, tmp_path / "c")
    only = {"test": spec["coco"]["test"]}
    assert "the task needs 'train'" in refusal({**spec, "coco": only}, tmp_path / "d")


# ---- images without a content hash, and labels shared by two splits ----


@pytest.mark.parametrize("name", [".h/0.jpg", "0", "0.dat", "__MACOSX/0.jpg"])
def test_images_that_the_content_hash_does_not_cover_are_refused_in_a_json(
    name: str, spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    moved = user_folder / "test" / name
    moved.parent.mkdir(exist_ok=True)
    (user_folder / "test/0.jpg").rename(moved)
    edit(user_folder / "test.json", lambda t: t["images"][0].update(file_name=name))
    text = refusal(spec, tmp_path / "a")
    assert f"the first is {name}" in text
    assert str(user_folder / "test.json") in text
    moved.rename(user_folder / "test/new.jpg")
    edit(user_folder / "test.json", lambda t: t["images"][0].update(file_name="new.jpg"))
    own.run(spec, tmp_path / "b")


def test_masks_of_the_test_split_that_are_links_to_training_masks_are_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    (user_folder / "masks/test").rename(user_folder / "kept")
    (user_folder / "masks/test").symlink_to(user_folder / "masks/train")
    text = refusal(spec, tmp_path / "a")
    assert f"{user_folder / 'masks/test/0.png'} of test" in text
    assert "are the same file" in text
    (user_folder / "masks/test").unlink()
    (user_folder / "kept").rename(user_folder / "masks/test")
    own.run(spec, tmp_path / "b")


def test_a_note_with_the_score_says_that_test_labels_equal_train_labels(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    assert own.run(spec, tmp_path / "a")["task_notes"] == {}
    shutil.copy(user_folder / "train.json", user_folder / "test.json")
    shutil.copytree(user_folder / "masks/train", user_folder / "masks/test", dirs_exist_ok=True)
    notes = own.run(spec, tmp_path / "b")["task_notes"]
    assert "every box of test is also in train" in notes["detect"][0]
    assert "every mask of test equals" in notes["cityscapes"][0]
    allowed = [["coco/train", "coco/test"], ["masks/train", "masks/test"]]
    outputs = own.run({**spec, "allow_duplicates": allowed}, tmp_path / "c")
    assert outputs["task_notes"] == {}


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_class_names_that_differ_only_in_unicode_form_are_refused(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    (user_folder / "pool/a").rename(user_folder / "pool" / COMPOSED)
    (user_folder / "pool/b").rename(user_folder / "pool" / DECOMPOSED)
    text = refusal({**spec, "pool_labels": True}, tmp_path / "a")
    assert r"'cafe\u0301' and 'caf\xe9'" in text
    for split, name in (("train", COMPOSED), ("test", DECOMPOSED)):
        (user_folder / "classes" / split / "a").rename(user_folder / "classes" / split / name)
        edit(user_folder / f"{split}.json", lambda t, n=name: t["categories"][0].update(name=n))
    text = refusal(spec, tmp_path / "b")
    assert text.count(r"'cafe\u0301' and 'caf\xe9' look like one class") == 2


@pytest.mark.parametrize("pool", ["~nobody_of_this_name/x", "/" + "a" * 5000, "a\0b"])
def test_an_impossible_path_raises_kdep_error(pool: str, spec: Spec, tmp_path: Path) -> None:
    assert "(pool) does not exist" in refusal({**spec, "pool": pool}, tmp_path / "a")


def test_the_error_for_an_id_of_another_type_shows_the_valid_id(
    spec: Spec, user_folder: Path, tmp_path: Path
) -> None:
    edit(user_folder / "test.json", lambda t: t["annotations"][1].update(image_id="1"))
    assert "write the id as 1 in all" in refusal(spec, tmp_path / "a")
    edit(
        user_folder / "test.json", lambda t: t["annotations"][1].update(image_id=1, category_id=3.0)
    )
    assert "write the id as 3 in all" in refusal(spec, tmp_path / "b")
    edit(user_folder / "test.json", lambda t: t["annotations"][1].update(category_id=3))
    own.run(spec, tmp_path / "c")

"""The pocket data: equal bytes for a seed, exact annotations, disjoint splits, errors."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from kdep_bench.data.checks import check_coco, check_image_folder, check_segmentation
from kdep_bench.data.pocket import compose, make, prepare, verify
from kdep_bench.data.pocket.material import (
    CLASSES,
    DISTRACTOR,
    Cutout,
    Material,
    Photo,
    premultiplied,
)
from kdep_bench.data.pocket.procedural import procedural_cutouts
from kdep_bench.errors import KdepError

SPEC: dict[str, Any] = {
    "pool_composites": 24,
    "pool_crops": 8,
    "classify": {"train": 16, "val": 8, "test": 8},
    "scenes": {"train": 10, "val": 3, "test": 5},
}


def read_mask(path: str) -> np.ndarray:
    """The pixels of a mask file."""
    mask = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert mask is not None, path
    return mask


def quiet(done: int, total: int, note: str = "") -> None:
    """A progress callback that checks its arguments."""
    assert 0 <= done <= total, note


def noise_photo(index: int) -> np.ndarray:
    """Smooth noise, different for every index."""
    rng = np.random.default_rng(index)
    small = rng.integers(0, 255, (9, 12, 3)).astype(np.uint8)
    return cv2.resize(small, (340, 256), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def material() -> Material:
    """Drawn objects (two per group), 24 noise images as photographs, and 6 labelled ones."""
    cutouts = [
        Cutout(name, label, f"{label}-{int(name[-2:]) // 2}", premultiplied(image))
        for name, label, image in procedural_cutouts(CLASSES, DISTRACTOR, 96)
    ]
    photos = [Photo(f"p{i}", "noise", f"g{i // 2}", noise_photo(i)) for i in range(24)]
    checks = [Photo(f"c{i}", "ab"[i % 2], f"c{i}", noise_photo(90 + i)) for i in range(6)]
    return Material("pip-only", cutouts, photos, checks)


Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def made(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(data folder, outputs) of the small data set."""
    out = tmp_path_factory.mktemp("made")
    return out / "data", make.make(SPEC, material, out, quiet)


def test_a_seed_gives_the_same_files_with_any_number_of_processes(
    material: Material, made: Made, tmp_path: Path
) -> None:
    repeated = make.make(SPEC, material, tmp_path / "a", quiet, workers=2)
    assert repeated["fingerprint"] == made[1]["fingerprint"]
    other_seed = make.make({**SPEC, "seed": 1}, material, tmp_path / "b", quiet)
    assert other_seed["fingerprint"] != made[1]["fingerprint"]


def test_files_of_an_interrupted_run_are_removed(
    material: Material, made: Made, tmp_path: Path
) -> None:
    stray = tmp_path / "data/pool/images/00/999999.jpg"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    outputs = make.make(SPEC, material, tmp_path, quiet)
    assert outputs["fingerprint"] == made[1]["fingerprint"]
    assert not stray.exists()


def test_the_manifest_agrees_with_the_outputs_and_the_files(made: Made) -> None:
    root, outputs = made
    json.dumps(outputs, allow_nan=False)
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["fingerprint"] == outputs["fingerprint"] == verify.verify(root)
    lines = (root / "checksums.txt").read_text().splitlines()
    assert lines == sorted(lines, key=lambda line: line.split("  ")[1])
    digest, path = lines[0].split("  ")
    assert hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
    images = outputs["counts"]["images"]
    assert images["pool"] == 24 + 8
    assert images["classify/train"] == 16
    assert images["detect/test"] == 5
    assert images["photos/a"] == 3


def test_no_group_of_related_images_is_in_two_splits(material: Material, made: Made) -> None:
    splits = json.loads((made[0] / "manifest.json").read_text())["splits"]
    items = {"objects": material.cutouts, "backgrounds": material.backgrounds}
    for kind, material_items in items.items():
        group = {i.name: i.group for i in material_items}
        splits_of: dict[str, set[str]] = {}
        for split, names in splits[kind].items():
            for name in names:
                splits_of.setdefault(group[name], set()).add(split)
        assert sum(map(len, splits[kind].values())) == len(material_items)
        assert all(len(splits_of_group) == 1 for splits_of_group in splits_of.values())


def test_pool_labels_are_balanced_and_complete(made: Made) -> None:
    table = json.loads((made[0] / "pool/labels.json").read_text())
    on_disk = {p.relative_to(made[0] / "pool/images").as_posix()
               for p in (made[0] / "pool/images").rglob("*.jpg")}  # fmt: skip
    assert set(table["labels"]) == set(table["fine"]) == on_disk
    assert table["classes"] == [*CLASSES, "scene"]
    values = list(table["labels"].values())
    # 24 composites of 8 classes; the 8 crops have the class 'scene'.
    assert [values.count(i) for i in range(9)] == [3] * 8 + [8]


def test_the_generated_data_pass_the_checks_of_user_data(made: Made) -> None:
    root, _ = made
    for split, count in SPEC["scenes"].items():
        counts = check_coco(root / f"detect/annotations/{split}.json", root / "detect" / split)
        assert counts["images"] == counts["decoded"] == count
        assert counts["categories"] == 8
    assert check_segmentation(root / "cityscapes", 9) == SPEC["scenes"]
    for split in ("train", "val", "test"):
        assert set(check_image_folder(root / "classify" / split, CLASSES)) == set(CLASSES)
    with pytest.raises(KdepError, match="labelIds instead of trainIds"):
        check_segmentation(root / "cityscapes", 9, mask_suffix="_gtFine_labelIds.png")


def test_boxes_areas_and_train_ids_follow_from_the_masks(made: Made) -> None:
    root, _ = made
    coco = COCO(root / "detect/annotations/train.json")
    n_boxes = 0
    for image in coco.loadImgs(coco.getImgIds()):
        stem = Path(image["file_name"]).stem
        base = root / f"cityscapes/gtFine/train/pocket/pocket_{stem}_000019_gtFine_"
        train = read_mask(f"{base}labelTrainIds.png")
        label = read_mask(f"{base}labelIds.png")
        expected = np.full(train.shape, 8, np.uint8)  # 8: the class of the background, 'scene'
        covered = np.zeros(train.shape, int)
        for ann in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(ann).astype(bool)
            covered += mask
            expected[mask] = ann["category_id"] - 1
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert ann["bbox"] == box
            rle: Any = ann["segmentation"]
            assert ann["bbox"] == list(coco_mask.toBbox(rle))
            assert ann["area"] == mask.sum() >= compose.MIN_VISIBLE_PX
            n_boxes += 1
        assert covered.max() <= 1, "visible masks do not overlap"
        inside = train != 255
        assert 0.5 < inside.mean() < 1
        assert np.array_equal(train[inside], expected[inside])
        assert np.array_equal(label[inside], make.LABEL_IDS[train[inside]])
        assert (label[~inside] == make.LABEL_ID_UNLABELLED).all()
    assert n_boxes >= SPEC["scenes"]["train"]


def test_the_masks_mark_the_pixels_of_the_drawn_objects() -> None:
    """White objects on black: bright pixels are the instances, up to the edge blend."""
    white = np.full((60, 60, 4), 255, np.uint8)
    cutouts = {label: [Cutout("w", label, "w", white)] for label in CLASSES}
    cutouts[DISTRACTOR] = [Cutout("d", DISTRACTOR, "d", np.zeros((9, 9, 4), np.uint8))]
    sources = compose.SourceImages(
        cutouts, [Photo("b", "x", "b", np.zeros((200, 200, 3), np.uint8))]
    )
    for seed in range(12):
        scene = compose.scene(np.random.default_rng(seed), sources, (160, 120))
        wrong = (scene.image.max(2) > 90) != (scene.instances > 0)
        assert wrong.mean() < 0.02
        assert set(np.unique(scene.instances)) <= set(range(len(scene.labels) + 1))


def test_a_placed_object_has_the_requested_size() -> None:
    white = np.full((40, 80, 4), 255, np.uint8)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        long_side = rng.uniform(40, 120)
        layer = compose.place(rng, Cutout("w", "x", "w", white), (128, 128), long_side, 1.0)
        ys, xs = np.nonzero(layer[..., 3] > 127)
        assert abs(max(np.ptp(xs), np.ptp(ys)) + 1 - long_side) < 4


def test_a_changed_missing_or_additional_file_is_detected(made: Made, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(made[0], root)
    image = root / "classify/test/bird/00001.jpg"
    raw = image.read_bytes()
    faults: list[tuple[Callable[[], Any], str]] = [
        (lambda: image.write_bytes(raw[:-1] + b"x"), r"00001\.jpg is changed"),
        (lambda: image.unlink(), r"00001\.jpg is missing"),
        (lambda: (image.write_bytes(raw), (root / "zz.txt").touch()), r"zz\.txt is not listed"),
        (lambda: (root / "checksums.txt").write_text(""), r"checksums\.txt is missing or changed"),
        (lambda: (root / "manifest.json").unlink(), r"has no manifest\.json"),
    ]
    for inject, message in faults:
        inject()
        with pytest.raises(KdepError, match=message):
            verify.verify(root)
    with pytest.raises(KdepError, match="gone does not exist"):
        verify.verify(root / "gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"pool_compositse": 3}, "did you mean pool_composites"),
        ({"pool_crops": -1}, "pool_crops = -1; expected an integer, 0 or more"),
        ({"seed": 1.5}, "seed = 1.5; expected an integer"),
        ({"classify": {"train": 1, "val": "2", "test": 3}}, "classify.val = '2'"),
        ({"px": 16}, "px = 16; expected an integer from 32 to 512"),
        ({"scene_size": [160]}, r"scene_size = \[160\]; expected \[width, height\]"),
        ({"scene_size": 160}, r"scene_size = 160; expected \[width, height\]"),
        ({"scenes": {"train": 3}}, "train=..., val=..., test=..."),
        ({"scenes": 3}, r"scenes = 3; expected dict\(train=..., val=..., test=...\)"),
        ({"source": "debian"}, "unknown source"),
    ],
)
def test_invalid_specs_are_refused(spec: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(KdepError, match=message):
        prepare(spec, {}, tmp_path, quiet)


def test_a_full_disk_raises_kdep_error(material: Material, tmp_path: Path) -> None:
    if Path("/dev/full").exists():
        with pytest.raises(KdepError, match="No space left on device"):
            make.write_file(Path("/dev/full"), b"x")
    with pytest.raises(KdepError, match=r"MB are free in"):
        make.make({**SPEC, "pool_crops": 10**10}, material, tmp_path, quiet)


def test_a_split_without_a_class_is_refused(material: Material, tmp_path: Path) -> None:
    few = [c for c in material.cutouts if c.label != "coin"]
    with pytest.raises(KdepError, match="include no coin"):
        make.make(SPEC, Material("pip-only", few, material.backgrounds, []), tmp_path, quiet)


def test_recipes_list_the_classes_of_the_masks_in_the_order_of_their_values() -> None:
    from kdep_bench.data.pocket.material import SCENE
    from kdep_bench.suite.config import load_config

    for task in ("pocket_seg", "smoke_seg"):
        assert load_config("task", task)["recipe"]["classes"] == [*CLASSES, SCENE]

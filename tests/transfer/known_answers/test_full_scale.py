"""The full-scale tasks on tiny data sets in their official formats give exactly the expected score.

Every image has one colour, which stands for a number, its code (see networks.py); the head learns
from the training images which class a code means. If the training data of a set are in several
parts, each part has other classes, so that a part that is not read lowers the score.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdep_bench.data.official import caltech256, coco, dtd, voc
from kdep_bench.data.official import cub200 as cub
from kdep_bench.data.official.base import get_set
from kdep_bench.data.official.tiny import save_palette, write_lines
from kdep_bench.suite.config import resolve
from tests.transfer.known_answers import test_detection as boxes
from tests.transfer.known_answers import test_segmentation as masks
from tests.transfer.known_answers.pictures import (
    STILL,
    run_stage,
    save,
    seen_in,
    student,
    uniform_image,
)

# ---- classification ----

# Code of the training images of each of the four classes of a set.
MEANING = [5, 2, 7, 0]
# Codes of the test images of each class. Right: 1 of 2, 6 of 8, 1 of 4, 2 of 2; together 10 of 16.
TEST = [[5, 2], [2, 2, 2, 2, 2, 2, 7, 0], [0, 7, 2, 5], [0, 0]]
RECALL = [1 / 2, 6 / 8, 1 / 4, 2 / 2]
PX = 28  # side of the training images in pixels

Rows = list[tuple[int, np.ndarray]]  # (class 0..3, image)


def training_rows(part: int = 0, parts: int = 1) -> Rows:
    """The training images, four per class, of part number `part` of `parts`.

    Each part has other classes: a network that is not trained on a part does not know their codes.
    """
    classes = range(part * 4 // parts, (part + 1) * 4 // parts)
    return [(k, uniform_image(MEANING[k], k, (PX, PX))) for k in classes for _ in range(4)]


def scored_rows(framed: bool) -> Rows:
    """The 16 test images; `framed`: with a frame that the centre crop removes."""
    rows: Rows = []
    for k, codes in enumerate(TEST):
        for code in codes:
            if framed:
                pixels = uniform_image(code, 30, (256, 256))
                pixels[8:-8, 8:-8] = uniform_image(code, len(rows), (240, 240))
            else:
                pixels = uniform_image(code, len(rows))
            rows.append((k, pixels))
    return rows


def write_cifar100(folder: Path) -> list[str]:
    """Writes the set in its official format; returns the names of its four classes."""
    labels = [97, 3, 60, 42]
    names = [f"name_{(7 * i) % 100:02}" for i in range(100)]
    base = folder / "cifar-100-python"
    base.mkdir(parents=True)
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    train = [(k, uniform_image(MEANING[k], k)) for k, _ in training_rows()]
    for split, rows in (("train", train), ("test", scored_rows(framed=False))):
        images = np.stack([pixels for _, pixels in rows]).transpose(0, 3, 1, 2)
        fine = [labels[k] for k, _ in rows]
        table = {"data": images.reshape(len(rows), -1), "fine_labels": fine}
        table["coarse_labels"] = [int(k) for k, _ in rows][::-1]  # must not be read
        (base / split).write_bytes(pickle.dumps(table, protocol=2))
    return [names[k] for k in labels]


def write_cub200(folder: Path) -> list[str]:
    """Writes the set with 4 of its 200 classes; returns their names.

    Its lists mix training and test images.
    """
    base, numbers = folder / cub.FOLDER, [200, 1, 37, 12]
    names = {
        1: "Black_footed_Albatross",
        12: "Yellow_headed_Blackbird",
        37: "Acadian_Flycatcher",
        200: "Common_Yellowthroat",
    }
    rows = [(*row, 1) for row in training_rows()] + [(*row, 0) for row in scored_rows(framed=True)]
    rows = rows[::2] + rows[1::2]
    files = []
    for i, (k, pixels, _) in enumerate(rows):
        number = numbers[k]
        files.append(f"{number:03}.{names[number]}/{names[number]}_{i:04}_{i}.jpg")
        save(base / "images" / files[-1], pixels)
    lists = (files, [numbers[k] for k, _, _ in rows], [train for _, _, train in rows])
    for file, column in zip(
        ("images.txt", "image_class_labels.txt", "train_test_split.txt"), lists, strict=True
    ):
        write_lines(base / file, [f"{i} {value}" for i, value in enumerate(column, 1)])
    return [names[n] for n in numbers]


def write_dtd(folder: Path) -> list[str]:
    """Writes the set; returns the names of its four classes.

    `train1` and `val1` are both for training; each has half of the classes.
    """
    from scipy.io import savemat

    textures = {"zigzagged": 47, "banded": 1, "dotted": 11, "woven": 45}
    names, base, rows = list(textures), folder / dtd.FOLDER, []
    parts = {
        "train1": training_rows(0, 2),
        "val1": training_rows(1, 2),
        "test1": scored_rows(framed=True),
    }
    for number, (split, part) in enumerate(parts.items(), 1):
        files = []
        for i, (k, pixels) in enumerate(part):
            files.append(f"{names[k]}/{names[k]}_{number}{i:03}.jpg")
            save(base / "images" / files[-1], pixels)
            rows.append((files[-1], textures[names[k]], number))
        write_lines(base / "labels" / f"{split}.txt", files)
    files = np.empty((1, len(rows)), object)
    files[0] = [row[0] for row in rows]
    numbers = {
        k: np.array([[row[j] for row in rows]], np.uint8) for j, k in ((1, "class"), (2, "set"))
    }
    ids = np.arange(1, len(rows) + 1, dtype=np.uint8)[None]
    (base / "imdb").mkdir(parents=True)
    savemat(base / "imdb/imdb.mat", {"images": {"id": ids, "name": files, **numbers}})
    return names


def write_caltech256(folder: Path) -> list[str]:
    """Writes the set; returns the names of its four classes.

    The first four images of each class by name are for training.
    """
    names = ["001.zebra", "002.ak47", "003.yo-yo", "004.clutter"]
    for part, rows in enumerate((training_rows(), scored_rows(framed=True))):
        for i, (k, pixels) in enumerate(rows):
            file = f"{names[k]}/{names[k][:3]}_{part}{i:03}.jpg"
            save(folder / caltech256.FOLDER / file, pixels)
    caltech256.write_lists(folder, 4)
    return names


CLASSIFICATION = {
    "cifar100": write_cifar100,
    "cub200": write_cub200,
    "dtd": write_dtd,
    "caltech256": write_caltech256,
}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_official_finetuning_scores_the_test_images_by_their_own_labels(
    name: str, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """These faults would give other scores: training images scored (16/16), a part of the training
    data left out, labels counted from 0 in place of 1 or the reverse, test images not cropped.
    """
    names = CLASSIFICATION[name](tmp_path / "p/data" / name)
    task = resolve("task", name)
    task["recipe"].update(
        epochs=3, step_epochs=3, batch=8, test_batch=5, lr=1.0, norm_eval=True, workers=0
    )
    student_config = {**student(input_hw=[PX, PX], drops=False), "input_px": PX}
    outputs, seen = in_subprocess(run_stage, task, student_config, tmp_path / "p", tmp_path, 1)
    assert outputs["value"] == 10 / 16
    assert outputs["per_class"] == pytest.approx(dict(zip(names, RECALL, strict=True)), abs=1e-7)
    order = seen_in(seen, "test")
    assert sorted(order) == list(range(16))
    if name != "cub200":  # the lists of CUB-200 are mixed
        assert order == list(range(16))
    trained = seen_in(seen, "train")
    # Each class has 4 training images in each of 3 epochs, and epochs have different orders.
    assert {k: trained.count(k) for k in range(4)} == dict.fromkeys(range(4), 12)
    assert trained[:16] != trained[16:32]


# ---- detection ----


def detection_task(name: str, answers: dict[str, Any]) -> dict[str, Any]:
    """The full-scale detection task with a short schedule and the detector `BoxReader`.

    The detector returns `answers`: {code of an image: its detections}.
    """
    task = resolve("task", name)
    recipe = task["recipe"]
    recipe.update(
        scales=[48],
        test_scale=48,
        long_edge=64,
        iters=8,
        warmup=1,
        batch=2,
        test_batch=2,
        lr=STILL,
        norm_eval=True,
        workers=0,
    )
    recipe["model"] = {**boxes.box_reader(recipe["model"]), "answers": answers}
    return task


def test_coco_scores_val2017_at_each_threshold(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """These faults would give other scores: train2017 scored (AP 1), another threshold or class."""
    # Class of test_detection -> COCO class that takes its place.
    coco_name = {"ant": "person", "Bee": "zebra", "zebra": "toothbrush"}
    number = {name: int(key) for key, name in coco.NAMES.items()}
    # {COCO class: (category id, code)}; the code of classes without a box is 1.
    classes = {name: (k, 1) for name, k in number.items()}
    classes |= {new: (number[new], boxes.CLASSES[old][1]) for old, new in coco_name.items()}
    folder = tmp_path / "p/data/coco"
    for split, truth, first in (("train2017", boxes.TRAIN, 11), ("val2017", boxes.TEST, 1)):
        renamed: boxes.Truth = [
            [(coco_name[name], crowd) for name, crowd in objects] for objects in truth
        ]
        file = folder / "annotations" / f"instances_{split}.json"
        boxes.write_split(folder / split, file, renamed, first, classes, list(classes), ".jpg")
    task = detection_task("coco_fpn", boxes.ANSWERS)
    outputs, seen = in_subprocess(run_stage, task, student(drops=False), tmp_path / "p", tmp_path)
    assert outputs["metrics"] == boxes.rounded(
        {"bbox_mAP": boxes.AP, "bbox_mAP_50": boxes.AP50, "bbox_mAP_75": boxes.AP75}
    )
    assert outputs["value"] == round(boxes.AP, 3)
    per_class = {coco_name[name]: value for name, value in boxes.PER_CLASS.items()}
    assert outputs["per_class"] == boxes.rounded(per_class)
    assert sorted(code for mode, code, _ in seen if mode == "test") == [1, 2, 3, 4, 5]


VOC_CODES = {"aeroplane": 22, "dog": 21, "tvmonitor": 20}  # {class: code}
#: {(year, split): for each image, (class, 1 if difficult) of each object}.
#: The training images of 2007 show two of the classes, those of 2012 the third.
VOC: dict[tuple[str, str], list[list[tuple[str, int]]]] = {
    ("VOC2007", "trainval"): [[("aeroplane", 0), ("dog", 0)], [("dog", 0)]],
    ("VOC2012", "trainval"): [[("tvmonitor", 0)], [("tvmonitor", 0)]],
    ("VOC2007", "test"): [
        [("aeroplane", 0)],
        [("dog", 0), ("dog", 0)],
        [("tvmonitor", 0), ("dog", 1)],
        [],
        [("tvmonitor", 1)],
    ],
}


def write_voc_detection(folder: Path) -> None:
    """Writes `VOC`. Codes of the test images are 1, 2, ...; of the training images 11, 12, ..."""
    first = 11
    for (year, split), truth in VOC.items():
        base, names = folder / voc.DEVKIT / year, []
        code = 1 if split == "test" else first
        for k, objects in enumerate(truth):
            names.append(f"{split}_known_{k}")
            pixels = boxes.scene(code + k, k, [VOC_CODES[name] for name, _ in objects])
            save(base / "JPEGImages" / f"{names[-1]}.jpg", pixels)
            objects_of_xml = [
                {"name": name, "difficult": difficult, "box": (x, y, x + w, y + h)}
                for (name, difficult), (x, y, w, h) in zip(objects, boxes.BOXES, strict=False)
            ]
            xml = base / "Annotations" / f"{names[-1]}.xml"
            voc.write_xml(xml, f"{names[-1]}.jpg", (boxes.WIDTH, boxes.HEIGHT), objects_of_xml)
        write_lines(base / "ImageSets/Main" / f"{split}.txt", names)
        first += 0 if split == "test" else len(truth)


def test_voc_scores_are_ap_at_11_recalls_and_each_threshold_on_the_2007_test_split(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """These faults would give other scores: a training list scored, 101 recalls as for COCO,
    difficult objects counted as missed or as wrong, another threshold.
    """
    folder = tmp_path / "p/data/voc"
    get_set("voc").tiny(folder, np.random.default_rng(0))
    write_voc_detection(folder)

    def answer(name: str, score: float, box: int, iou: float) -> list[float]:
        """As `ANSWERS` in test_detection.py, with the codes of the VOC classes."""
        return [VOC_CODES[name], score, *boxes.narrow(boxes.BOXES[box], iou)]

    # As `ANSWERS` in test_detection.py, where the AP is explained. Boxes of VOC end one pixel
    # earlier (63 x 31 pixels), so the IoUs are .715, .519 and .763.
    answers = {
        "1": [answer("aeroplane", 0.5, 0, 0.72)],
        "2": [answer("dog", 0.9, 1, 0.52)],  # one of two: recall 1/2 covers 6 of the 11 recalls
        "3": [answer("tvmonitor", 0.3, 0, 0.77)],
        "4": [answer("tvmonitor", 0.8, 0, 1.0)],
        "5": [answer("tvmonitor", 0.95, 0, 1.0)],
        **{str(11 + k): [answer("dog", 0.99, 0, 1.0)] for k in range(4)},
    }
    task = detection_task("voc0712_fpn", answers)
    outputs, seen = in_subprocess(run_stage, task, student(drops=False), tmp_path / "p", tmp_path)
    ap = {"aeroplane": 0.5, "dog": 0.1 * 6 / 11, "tvmonitor": 0.6 / 2}
    assert outputs["metrics"] == pytest.approx(
        {"AP": sum(ap.values()) / 3, "AP50": (1 + 6 / 11 + 0.5) / 3, "AP75": 0.5 / 3}, abs=1e-7
    )
    assert outputs["metric"] == "AP"
    assert outputs["per_class"] == pytest.approx(ap, abs=1e-7)
    assert sorted(code for mode, code, _ in seen if mode == "test") == [1, 2, 3, 4, 5]
    assert {code for mode, code, _ in seen if mode == "train"} == {11, 12, 13, 14}


# ---- segmentation ----

# {task: (classes that replace road, car, tree and sky; their labels in masks; the ignored label)}
SEGMENTATION: dict[str, tuple[list[str], list[int], int]] = {
    "cityscapes": (["road", "pole", "rider", "bicycle"], [0, 5, 12, 18], 255),
    "voc12_seg": (["background", "bird", "dog", "tvmonitor"], [0, 3, 12, 20], 255),
    # Labels begin at 1, and 0 means no class.
    "ade20k": (["wall", "ceiling", "person", "flag"], [1, 6, 13, 150], 0),
}
Scenes = list[tuple[np.ndarray, np.ndarray]]


def scenes(name: str, pairs: list[tuple[str, str, int]]) -> Scenes:
    """[(image, mask)] of `pairs` (as in test_segmentation.PAIRS) with the labels of the task."""
    _, values, ignored = SEGMENTATION[name]
    labels = dict(zip(masks.CLASSES, values, strict=True)) | {"": ignored}
    return masks.images_and_masks(pairs, labels, masks.CODES)


def halves(name: str) -> Iterator[Scenes]:
    """The training data in two parts; each part has two of the classes."""
    road, car, tree, sky = masks.PAIRS["train"]
    yield scenes(name, [road, car])
    yield scenes(name, [tree, sky])


def write_cityscapes(folder: Path) -> None:
    """Writes the set in its official format; the split `test` must not be read."""
    parts = {"train": [pair for half in halves("cityscapes") for pair in half]}
    parts["val"] = scenes("cityscapes", masks.PAIRS["test"])
    parts["test"] = scenes("cityscapes", masks.PAIRS["val"])
    for split, part in parts.items():
        for k, (pixels, mask) in enumerate(part):
            stem = f"{split}/town/town_{k:06}_000019"
            save(folder / "leftImg8bit" / f"{stem}_leftImg8bit.png", pixels)
            save(folder / "gtFine" / f"{stem}_gtFine_labelTrainIds.png", mask)
            save(folder / "gtFine" / f"{stem}_gtFine_labelIds.png", mask // 2)


def write_voc12_seg(folder: Path) -> None:
    """Writes the set. `train` and SBD's `aug` are for training; each has half of the classes."""
    get_set("voc").tiny(folder, np.random.default_rng(0))
    year = folder / voc.DEVKIT / "VOC2012"
    train, aug = halves("voc12_seg")
    parts = {"train": train, "aug": aug, "val": scenes("voc12_seg", masks.PAIRS["test"])}
    for split, part in parts.items():
        names = [f"known_{split}_{k}" for k in range(len(part))]
        for file, (pixels, mask) in zip(names, part, strict=True):
            save(year / "JPEGImages" / f"{file}.jpg", pixels)
            mask_folder = year / f"SegmentationClass{'Aug' if split == 'aug' else ''}"
            palette = [[i, 255 - i, 7] for i in range(21)]
            save_palette(mask_folder / f"{file}.png", mask, palette)
        write_lines(year / "ImageSets/Segmentation" / f"{split}.txt", names)


def write_ade20k(folder: Path) -> None:
    """Writes the set in its official format."""
    base = folder / "ADEChallengeData2016"
    train = [pair for half in halves("ade20k") for pair in half]
    for split, part in (
        ("training", train),
        ("validation", scenes("ade20k", masks.PAIRS["test"])),
    ):
        for k, (pixels, mask) in enumerate(part):
            save(base / "images" / split / f"ADE_{split}_{k}.jpg", pixels)
            save(base / "annotations" / split / f"ADE_{split}_{k}.png", mask)


WRITERS = {  # {task: (folder of its set, function that writes it)}
    "cityscapes": ("cityscapes", write_cityscapes),
    "voc12_seg": ("voc", write_voc12_seg),
    "ade20k": ("ade20k", write_ade20k),
}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_each_official_segmentation_set_has_its_own_meaning_of_the_labels_0_and_255(
    name: str, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """These faults would give other scores: the training split scored (1), labels shifted by one,
    label 0 ignored if it is a class or counted if it is not, accuracy in place of IoU, half of the
    training data.
    """
    folder, write = WRITERS[name]
    write(tmp_path / "p/data" / folder)
    task = resolve("task", name)
    recipe = task["recipe"]
    recipe.update(
        scale=[64, 64],
        resize_ratio=[1.0, 1.0],
        crop=[64, 64],
        iters=16,
        batch=2,
        test_batch=1,
        lr=10.0,
        head_lr_mult=1,
        norm_eval=True,
        workers=0,
    )
    recipe["model"] = masks.segmenter(recipe["model"])
    student_config = student(input_hw=[64, 64], drops=False)
    outputs, seen = in_subprocess(run_stage, task, student_config, tmp_path / "p", tmp_path, 1)
    expected = {
        "mIoU": masks.MIOU,
        "mAcc": masks.MEAN_ACCURACY,
        "aAcc": masks.ALL_ACCURACY,
        "constant_mIoU": masks.CONSTANT,
    }
    assert outputs["metric"] == "mIoU"
    assert outputs["metrics"] == pytest.approx(expected, abs=1e-7)
    names = SEGMENTATION[name][0]
    iou = dict(zip(names, masks.IOU.values(), strict=True))
    assert outputs["per_class"] == pytest.approx(iou, abs=1e-7)
    assert seen_in(seen, "test") == [0, 1]

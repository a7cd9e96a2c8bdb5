"""Detection: the AP of each IoU threshold and class is exactly that calculated by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.transfer.conftest import config
from tests.transfer.known_answers.pictures import (
    NETWORKS,
    STILL,
    run_stage,
    save,
    student,
    uniform_image,
)

WIDTH, HEIGHT = 128, 96  # of the images in pixels
# {class: (category id, colour code)}. Names (ASCII), ids and codes sort in different orders.
CLASSES = {"zebra": (7, 20), "ant": (3, 22), "Bee": (5, 21)}

Order = tuple[str, ...]  # names of classes in the order of a COCO file
Truth = list[list[tuple[str, bool]]]  # of each image: (class, whether a crowd) of its boxes
# The first and the second box of every image: x, y, width, height in pixels.
BOXES = [[32, 16, 64, 32], [32, 56, 64, 32]]

#: Images of the test split. Their codes are 1, 2, ...; those of other splits 11, 12, ...
TEST: Truth = [
    [("ant", False)],
    [("Bee", False), ("Bee", False)],
    [("zebra", False)],
    [],
    [("zebra", True)],
]
#: The splits that are not scored have the same objects in other images.
TRAIN: Truth = [[("ant", False), ("Bee", False)], [("zebra", False)], [("Bee", False)]]


def narrow(box: list[int], iou: float) -> list[float]:
    """A box, as fractions of the image size, whose IoU with `box` is `iou`."""
    x, y, w, h = box
    return [x / WIDTH, y / HEIGHT, iou * w / WIDTH, h / HEIGHT]


def answer(name: str, score: float, box: int, iou: float) -> list[float]:
    """[code of the class, score, x, y, w, h]: a detection whose IoU with BOXES[box] is `iou`."""
    return [CLASSES[name][1], score, *narrow(BOXES[box], iou)]


# {code of an image: its detections}. AP is the mean of the precision over the IoU thresholds .50,
# .55, ... .95 and over 101 recalls from 0 to 1.
ANSWERS = {
    # ant: one of one detected with IoU .72, which is right at .50 to .70, five of ten thresholds.
    # AP 5/10, AP50 1, AP75 0.
    "1": [answer("ant", 0.5, 0, 0.72)],
    # Bee: one of two detected with IoU .52, right only at .50. The recall 1/2 covers 51 of the 101
    # recalls.
    # AP 1/10 x 51/101, AP50 51/101, AP75 0.
    "2": [answer("Bee", 0.9, 1, 0.52)],
    # zebra: detected with IoU .77, right at .50 to .75, six thresholds, but a wrong detection (in
    # image 4) has a higher score: precision 1/2. AP 6/10 x 1/2, AP50 and AP75 1/2. The detection
    # with the highest score (image 5) is in a crowd, and counts neither as right nor as wrong.
    "3": [answer("zebra", 0.3, 0, 0.77)],
    "4": [answer("zebra", 0.8, 0, 1.0)],
    "5": [answer("zebra", 0.95, 0, 1.0)],
    # The training and validation splits: every object is detected, so they would score 1.
    "11": [answer("ant", 0.9, 0, 1.0), answer("Bee", 0.9, 1, 1.0)],
    "12": [answer("zebra", 0.9, 0, 1.0)],
    "13": [answer("Bee", 0.9, 0, 1.0)],
}
HALF = 51 / 101  # AP at recall 1/2 and precision 1
PER_CLASS = {"ant": 0.5, "Bee": 0.1 * HALF, "zebra": 0.3}
AP, AP50, AP75 = sum(PER_CLASS.values()) / 3, (1 + HALF + 0.5) / 3, 0.5 / 3


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The values at three decimals, as CocoMetric gives them."""
    return {k: round(v, 3) for k, v in values.items()}


def write_split(
    folder: Path,
    json_file: Path,
    truth: Truth,
    first: int,
    classes: dict[str, tuple[int, int]],
    order: Sequence[str],
    suffix: str = ".png",
) -> None:
    """Writes images and COCO file of a split; ids have gaps, images and annotations are shuffled.

    Args:
        folder: folder of the images.
        json_file: the COCO file.
        truth: the objects of each image.
        first: code of the first image; those of the others follow.
        classes: {name: (category id, colour code)}.
        order: the names in the order of the COCO file.
        suffix: of the images' names.
    """
    images, annotations = [], []
    for k, objects in enumerate(truth):
        pixels = scene(first + k, k, [classes[name][1] for name, _ in objects])
        for (name, crowd), (x, y, w, h) in zip(objects, BOXES, strict=False):
            annotations.append(
                dict(
                    id=100 + 3 * len(annotations),
                    image_id=50 - 2 * k,
                    category_id=classes[name][0],
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=int(crowd),
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        save(folder / f"{k:03}{suffix}", pixels)
        images.append(dict(id=50 - 2 * k, file_name=f"{k:03}{suffix}", width=WIDTH, height=HEIGHT))
    categories = [dict(id=classes[name][0], name=name) for name in order]
    rng = random.Random(" ".join(order))
    rng.shuffle(images)
    rng.shuffle(annotations)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def scene(code: int, index: int, objects: list[int]) -> np.ndarray:
    """An image [96, 128, 3] of one code; `objects` are the codes of the boxes at BOXES."""
    pixels = uniform_image(code, index, (WIDTH, HEIGHT))
    for colour, (x, y, w, h) in zip(objects, BOXES, strict=False):
        pixels[y : y + h, x : x + w] = uniform_image(colour, 0, (w, h))
    return pixels


def write_detect(root: Path, train: Order, test: Order) -> Path:
    """Writes a prepared `detect`; `train`, `test`: orders of the categories in the files."""
    folder = root / "data/detect"
    for split, truth, first, order in (
        ("train", TRAIN, 11, train),
        ("val", TRAIN, 11, train),
        ("test", TEST, 1, test),
    ):
        json_file = folder / "annotations" / f"{split}.json"
        write_split(folder / split, json_file, truth, first, CLASSES, order)
    return root


def detection_task() -> dict[str, Any]:
    """The task pocket_det with the detector `BoxReader`; test images are halved to 64 x 48."""
    task = config("tasks", "pocket_det")
    task["recipe"].update(
        scale=[64, 48], iters=6, batch=2, test_batch=2, warmup=1, lr=STILL, norm_eval=True
    )
    task["recipe"]["model"] = box_reader(task["recipe"]["model"])
    return task


def box_reader(model: dict[str, Any]) -> dict[str, Any]:
    """The detector's config with its class and answers replaced; its preprocessor is kept."""
    return dict(
        type=f"{NETWORKS}.BoxReader",
        data_preprocessor=model["data_preprocessor"],
        answers=ANSWERS,
        neck={},
        roi_head=dict(bbox_head={}),
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("ant", "Bee", "zebra"), ("ant", "Bee", "zebra")),
        (("zebra", "ant", "Bee"), ("zebra", "ant", "Bee")),
        (("Bee", "zebra", "ant"), ("ant", "Bee", "zebra")),
    ],
    ids=["by id", "not by id", "two orders"],
)
def test_ap_at_each_threshold_does_not_depend_on_the_order_of_the_categories(
    train: Order, test: Order, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Faults would give other scores: another split scored (AP 1), another threshold or class.

    Classes are identified by name. mmdet's own data set numbers them in the order of each file,
    and its metric reads the AP of a class as if the file were sorted by ids.
    """
    prepare = write_detect(tmp_path / "p", train, test)
    outputs, seen = in_subprocess(
        run_stage, detection_task(), student(drops=False), prepare, tmp_path, 3
    )
    assert outputs["metrics"] == rounded({"bbox_mAP": AP, "bbox_mAP_50": AP50, "bbox_mAP_75": AP75})
    assert outputs["metric"] == "bbox_mAP_50"
    assert outputs["value"] == round(AP50, 3)
    assert outputs["per_class"] == rounded(PER_CLASS)
    scored = [code for mode, code, _ in seen if mode == "test"]
    assert sorted(scored) == [1, 2, 3, 4, 5]
    trained = [code for mode, code, _ in seen if mode == "train"]
    assert sorted(set(trained)) == [11, 12, 13]
    assert len(trained) == 12  # 6 steps of 2 images

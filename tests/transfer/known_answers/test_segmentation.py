"""Segmentation: IoU of each class, mIoU and accuracies are exactly those calculated by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.transfer.conftest import config
from tests.transfer.known_answers.pictures import (
    STILL,
    head,
    run_stage,
    save,
    seen_in,
    student,
    uniform_image,
)

# {class: code of its colour}. The codes are not in ascending order.
CODES = {"road": 9, "car": 4, "tree": 12, "sky": 6}
CLASSES = list(CODES)
IGNORE = 255  # label of pixels that are not counted
BLOCK = 16  # side in pixels of a block; an image has 4 x 4 blocks of one class each

# (true class, predicted class, number of blocks), 16 blocks per image. The two test images have 32
# blocks, of which 28 are labelled. IoU is the intersection divided by the union:
#   road: true 14, predicted 16, both 12      IoU 12 / (14 + 16 - 12) = 12/18
#   car:  true  8, predicted  6, both  6      IoU  6 / (8 + 6 - 6)    = 6/8
#   tree: true  4, predicted  4, both  1      IoU  1 / (4 + 4 - 1)    = 1/7
#   sky:  true  2, predicted  2, both  0      IoU  0
# The other 4 blocks (true class "") have the ignored label and are predicted as car. If they were
# counted, or if road (label 0) was ignored as well, the scores would be others.
PAIRS: dict[str, list[tuple[str, str, int]]] = {
    "test": [
        ("road", "road", 12),
        ("road", "tree", 2),
        ("car", "car", 6),
        ("car", "road", 2),
        ("tree", "tree", 1),
        ("tree", "sky", 2),
        ("tree", "road", 1),
        ("sky", "road", 1),
        ("sky", "tree", 1),
        ("", "car", 4),
    ],
    "train": [("road", "road", 8), ("car", "car", 8), ("tree", "tree", 8), ("sky", "sky", 8)],
    "val": [("road", "car", 16), ("car", "road", 8), ("tree", "tree", 4), ("sky", "sky", 4)],
}
IOU = {"road": 12 / 18, "car": 6 / 8, "tree": 1 / 7, "sky": 0.0}
MIOU = sum(IOU.values()) / 4
MEAN_ACCURACY = (12 / 14 + 6 / 8 + 1 / 4 + 0) / 4  # mean over classes of both / true
ALL_ACCURACY = (12 + 6 + 1 + 0) / 28
# mIoU of predicting the most frequent class, road, everywhere: its IoU is its fraction of the
# labelled pixels, 14 / 28, and the IoU of the other three classes is 0.
CONSTANT = 14 / 28 / 4


def blocks(values: list[Any]) -> np.ndarray:
    """An array [64, 64, ...] from 16 blocks [16, 16, ...], row by row."""
    rows = [np.concatenate(values[i : i + 4], 1) for i in range(0, 16, 4)]
    return np.concatenate(rows)


def images_and_masks(
    pairs: list[tuple[str, str, int]], labels: dict[str, int], codes: dict[str, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, mask) for every 16 blocks of `pairs`.

    Args:
        pairs: as in PAIRS.
        labels: {class: its label in the mask}.
        codes: {class: its code}; the colours of an image are the codes of the predicted classes.
    """
    label_and_code = [
        (labels[true], codes[predicted]) for true, predicted, count in pairs for _ in range(count)
    ]
    assert len(label_and_code) % 16 == 0
    images = []
    for first in range(0, len(label_and_code), 16):
        part = label_and_code[first : first + 16]
        pixels = blocks([uniform_image(code, first // 16, (BLOCK, BLOCK)) for _, code in part])
        mask = blocks([np.full((BLOCK, BLOCK), label, np.uint8) for label, _ in part])
        images.append((pixels, mask))
    return images


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared Cityscapes folders with the scenes of `PAIRS`."""
    root = tmp_path_factory.mktemp("seg")
    labels = {name: i for i, name in enumerate(CLASSES)} | {"": IGNORE}
    for split, pairs in PAIRS.items():
        for k, (pixels, mask) in enumerate(images_and_masks(pairs, labels, CODES)):
            tree = root / "data/cityscapes"
            stem = f"{split}/town/town_{k:06}_000019"
            save(tree / "leftImg8bit" / f"{stem}_leftImg8bit.png", pixels)
            save(tree / "gtFine" / f"{stem}_gtFine_labelTrainIds.png", mask)
    return root


def segmenter(model: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The segmenter's config with one linear layer as its head; `options` are of this head."""
    kept = {k: v for k, v in model.items() if k != "auxiliary_head"}
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    linear = dict(
        type="FCNHead", num_convs=0, concat_input=False, channels=32, dropout_ratio=0.0,
        align_corners=False, loss_decode=loss, **options,
    )  # fmt: skip
    return {**kept, "decode_head": linear}


def segmentation_task(kind: str, tmp_path: Path) -> dict[str, Any]:
    """The task pocket_seg with a linear head, whose weights are set ("fixed") or learned."""
    task = config("tasks", "pocket_seg")
    recipe = task["recipe"]
    recipe.update(
        classes=CLASSES,
        palette=[[9 * i, 0, 0] for i in range(4)],
        scale=[32, 32],
        resize_ratio=[1.0, 1.0],
        crop=[32, 32],
        batch=2,
        warmup=1,
    )
    if kind == "fixed":
        tmp_path.mkdir(exist_ok=True)
        meaning = {code: i for i, code in enumerate(CODES.values())}
        file = head(tmp_path / "head.pth", meaning, 4, "conv_seg")
        recipe.update(lr=STILL, iters=3)
        init = dict(type="Pretrained", checkpoint=str(file))
        recipe["model"] = segmenter(recipe["model"], init_cfg=init)
    else:
        recipe.update(lr=10.0, iters=12, norm_eval=True, clip_norm=None)
        recipe["model"] = segmenter(recipe["model"])
    return task


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_miou_of_the_test_split_counts_label_0_and_ignores_label_255(
    kind: str, scene_folder: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Faults would give other scores: another split scored (train: 1), accuracy in place of IoU
    (19/28), ignored pixels counted or label 0 ignored, training mode, classes in another order.

    'fixed': the head's weights are set and do not change, and a BatchNorm and a Dropout show the
    mode. 'learned': the head learns the class of a colour from the training split.
    """
    student_config = student(input_hw=[32, 32], drops=kind == "fixed")
    outputs, seen = in_subprocess(
        run_stage, segmentation_task(kind, tmp_path), student_config, scene_folder, tmp_path, 5
    )
    assert outputs["metric"] == "mIoU"
    assert outputs["value"] == pytest.approx(MIOU, abs=1e-7)
    expected = {
        "mIoU": MIOU,
        "mAcc": MEAN_ACCURACY,
        "aAcc": ALL_ACCURACY,
        "constant_mIoU": CONSTANT,
    }
    assert outputs["metrics"] == pytest.approx(expected, abs=1e-7)
    assert outputs["per_class"] == pytest.approx(IOU, abs=1e-7)
    assert outputs["chance"] == pytest.approx(CONSTANT, abs=1e-7)
    assert seen_in(seen, "test") == [0, 1]
    assert {code for mode, code, _ in seen if mode == "train"} <= set(CODES.values())

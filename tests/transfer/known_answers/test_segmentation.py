"""Segmentation gives exactly the IoU of each class, mIoU and accuracies calculated by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.transfer.conftest import config
from tests.transfer.known_answers.pictures import (
    STILL,
    field,
    head,
    run_stage,
    save,
    seen_in,
    student,
)

# {class: code}. The codes are not in ascending order.
CODES = {"road": 9, "car": 4, "tree": 12, "sky": 6}
CLASSES = list(CODES)
IGNORE = 255
SIZE = (64, 64)
BLOCK = 16  # pixels; an image is 4 x 4 blocks of one class each

# (truth, guess, number of blocks), 16 blocks per image. Two test images: 32 blocks, 28 labelled.
#   road: truth 14, guess 16, both 12      IoU 12/18
#   car:  truth  8, guess  6, both  6      IoU  6/8
#   tree: truth  4, guess  4, both  1      IoU  1/7
#   sky:  truth  2, guess  2, both  0      IoU  0
# 4 blocks are to be ignored; their guess is car. To count them, or to ignore road (label 0) as
# well, would change the scores.
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
MEAN_ACCURACY = (12 / 14 + 6 / 8 + 1 / 4 + 0) / 4
ALL_ACCURACY = 19 / 28
# mIoU of predicting the most frequent class everywhere: its IoU is its share of the labelled
# pixels, and the IoU of the other three classes is 0.
CONSTANT = 14 / 28 / 4


def blocks(values: list[Any]) -> np.ndarray:
    """An array [64, 64, ...] from 4 x 4 blocks, row by row."""
    rows = [np.concatenate(values[i : i + 4], 1) for i in range(0, 16, 4)]
    return np.concatenate(rows)


def images_and_masks(
    pairs: list[tuple[str, str, int]], labels: dict[str, int], guesses: dict[str, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, mask) for every 16 blocks; the colours of an image are the codes of the guesses."""
    flat = [(labels[truth], guesses[guess]) for truth, guess, count in pairs for _ in range(count)]
    assert len(flat) % 16 == 0
    images = []
    for k in range(0, len(flat), 16):
        part = flat[k : k + 16]
        pixels = blocks([field(code, k // 16, (BLOCK, BLOCK)) for _, code in part])
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
    """The segmenter's config with one linear layer for its head; the rest is kept."""
    kept = {k: v for k, v in model.items() if k != "auxiliary_head"}
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    linear = dict(
        type="FCNHead", num_convs=0, concat_input=False, channels=32, dropout_ratio=0.0,
        align_corners=False, loss_decode=loss, **options,
    )  # fmt: skip
    return {**kept, "decode_head": linear}


def segmentation_task(kind: str, tmp_path: Path) -> dict[str, Any]:
    """pocket_seg with a linear head, whose weights are given ("fixed") or learnt."""
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
    """Faults give other scores: 1 (train), the scores of val, 19/28 (accuracy), a mean with ignored
    pixels or without label 0, training mode, names of classes in another order.

    'fixed': the head's weights are given and do not change, and a BatchNorm and a Dropout show the
    mode. 'learned': the head learns the class of a colour from the training split.
    """
    student_config = student(input_hw=[32, 32], drops=kind == "fixed")
    outputs, seen = in_subprocess(
        run_stage, segmentation_task(kind, tmp_path), student_config, scene_folder, tmp_path, 5
    )
    assert outputs["metric"] == "mIoU"
    assert outputs["value"] == pytest.approx(MIOU, abs=1e-7)
    assert outputs["metrics"] == pytest.approx(
        {
            "mIoU": MIOU,
            "mAcc": MEAN_ACCURACY,
            "aAcc": ALL_ACCURACY,
            "constant_mIoU": CONSTANT,
        },
        abs=1e-7,
    )
    assert outputs["per_class"] == pytest.approx(IOU, abs=1e-7)
    assert outputs["chance"] == pytest.approx(CONSTANT, abs=1e-7)
    assert seen_in(seen, "test")[:2] == [0, 1]
    assert {code for mode, code, _ in seen if mode == "train"} <= set(CODES.values())

"""A small user data set (pool, boxes, masks, classes): its files, and its data config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdep_bench.data.official import tiny
from kdep_bench.data.own import prepare

SPLITS = ("train", "test")


def make(root: Path) -> dict[str, Any]:
    """Writes the data set below `root`; returns the spec of stage `prepare` for it.

    The pool has 4 images in two folders. Each split has 3 images with one box each (of the classes
    cat, dog, cat), 3 images with masks of the values 0, 1 and 255, and 2 images per class a and b.
    """
    rng = np.random.default_rng(0)
    for i in range(4):
        tiny.save(root / "pool" / "ab"[i % 2] / f"{i}.jpg", tiny.noise_image(rng))
    spec: dict[str, Any] = {"pool": str(root / "pool"), "classes": ["x", "y"]}
    spec |= {"coco": {}, "masks": {}, "classify": {}}
    for split in SPLITS:
        images, boxes = [], []
        for i in range(3):
            tiny.save(root / split / f"{i}.jpg", tiny.noise_image(rng))
            tiny.save(root / "seg" / split / f"{i}.jpg", tiny.noise_image(rng))
            mask = np.zeros((48, 64), np.uint8)
            offset = int(split == "train")  # so that masks and boxes differ between the splits
            mask[offset : 10 + i + offset], mask[-1] = 1, 255
            tiny.save(root / "masks" / split / f"{i}.png", mask)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
            box = {"id": i, "image_id": i, "category_id": (7, 3)[i % 2], "bbox": [1, 2, 9 + i, 9]}
            boxes.append({**box, "area": 81 - offset, "iscrowd": 0})
        names = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        write(root / f"{split}.json", {"images": images, "annotations": boxes, "categories": names})
        spec["coco"][split] = {"json": str(root / f"{split}.json"), "images": str(root / split)}
        spec["masks"][split] = {
            "images": str(root / "seg" / split),
            "masks": str(root / "masks" / split),
        }
        for name in "ab":
            for i in range(2):
                tiny.save(root / "classes" / split / name / f"{i}.png", tiny.noise_image(rng))
        spec["classify"][split] = str(root / "classes" / split)
    return spec


def write(path: Path, table: Any) -> None:
    """Writes a table as JSON."""
    path.write_text(json.dumps(table))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Changes the content of a JSON file."""
    table = json.loads(path.read_text())
    change(table)
    write(path, table)


def change_masks(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes every mask below `folder`."""
    for path in sorted(folder.rglob("*.png")):
        Image.fromarray(change(np.asarray(Image.open(path)).copy())).save(path)


def run(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """Runs stage `prepare` in the new folder `out`; returns its outputs."""
    out.mkdir(parents=True)
    return prepare(spec, {}, out, lambda *_: None)


def contents(data: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a prepared folder; links are followed."""
    content_by_path = {}
    for base, _, files in os.walk(data, followlinks=True):
        for file in files:
            path = Path(base, file)
            content_by_path[str(path.relative_to(data))] = path.read_bytes()
    return content_by_path

"""Helper: a tiny data tree in the layout of the pocket data: coloured shapes on noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("mammal", "bird", "other_animal", "food", "plant", "household", "coin", "vehicle")
PHOTO_CLASSES = ("animal", "building", "tool")
COLOURS = (  # (red, green, blue) of the shapes of each class
    (230, 40, 40),
    (40, 220, 40),
    (40, 60, 230),
    (230, 220, 40),
    (220, 40, 220),
    (40, 220, 220),
    (240, 240, 240),
    (10, 10, 10),
)


def make(root: Path, *, per_class: int = 6, scenes: int = 8, seed: int = 0) -> Path:
    """Writes `root/data` with classify, photos, detect and cityscapes; returns `root/data`.

    Args:
        root: an existing folder.
        per_class: images per class and split of `classify`.
        scenes: scenes per split of `detect` and `cityscapes`.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    data = root / "data"
    for split in ("train", "val", "test"):
        for i, name in enumerate(CLASSES):
            for k in range(per_class):
                write_image(data / "classify" / split / name / f"{k:03}.jpg", i, 128, rng)
        write_scenes(data, split, scenes, rng)
    for i, name in enumerate(PHOTO_CLASSES):
        for k in range(8):
            write_image(data / "photos" / name / f"{k:03}.jpg", i, 100 + 20 * (k % 3), rng)
    return data


def noise(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A background of coloured noise, enlarged from blocks of 8 x 8 pixels."""
    blocks = rng.integers(90, 160, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height))


def draw_shape(draw: ImageDraw.ImageDraw, box: list[int], kind: int, fill: object) -> None:
    """Draws an ellipse for an odd class, a rectangle for an even one."""
    (draw.ellipse if kind % 2 else draw.rectangle)(box, fill=fill)  # type: ignore[arg-type]


def write_image(path: Path, kind: int, px: int, rng: np.random.Generator) -> None:
    """Writes a JPEG with one shape of the class `kind`."""
    image = noise(px, px, rng)
    x, y = rng.integers(5, px // 3, 2).tolist()
    draw_shape(ImageDraw.Draw(image), [x, y, x + px // 2, y + px // 2], kind, COLOURS[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92)


def write_scenes(data: Path, split: str, count: int, rng: np.random.Generator) -> None:
    """Writes scenes of two shapes each, as a split of `detect` and of `cityscapes`."""
    images, annotations = [], []
    detect = data / "detect" / split
    left = data / "cityscapes" / "leftImg8bit" / split / "pocket"
    fine = data / "cityscapes" / "gtFine" / split / "pocket"
    for folder in (detect, left, fine, data / "detect" / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        # Label 8 is the background, after the labels 0 to 7 of the classes.
        image, ids = noise(160, 120, rng), Image.new("L", (160, 120), 8)
        for slot in range(2):
            kind = int(rng.integers(len(CLASSES)))
            w, h = rng.integers(28, 56, 2).tolist()
            # The left or the right half of the scene, so that the shapes do not overlap.
            x = int(rng.integers(2, 78 - w)) + 80 * slot
            y = int(rng.integers(2, 118 - h))
            box = [x, y, x + w, y + h]
            draw_shape(ImageDraw.Draw(image), box, kind, COLOURS[kind])
            draw_shape(ImageDraw.Draw(ids), box, kind, kind)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=n + 1,
                    category_id=kind + 1,
                    bbox=[x, y, w + 1, h + 1],
                    area=(w + 1) * (h + 1),
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        name = f"{n:06}.jpg"
        images.append(dict(id=n + 1, file_name=name, width=160, height=120))
        image.save(detect / name, quality=92)
        stem = f"pocket_{n:06}_000019"
        image.save(left / f"{stem}_leftImg8bit.png")
        ids.save(fine / f"{stem}_gtFine_labelTrainIds.png")
        ids.point(lambda v: v + 1).save(fine / f"{stem}_gtFine_labelIds.png")
    categories = [dict(id=i + 1, name=c) for i, c in enumerate(CLASSES)]
    text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    (data / "detect" / "annotations" / f"{split}.json").write_text(text)

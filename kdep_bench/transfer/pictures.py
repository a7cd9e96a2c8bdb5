"""Draws small images of predictions with PIL, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

MAX_BYTES = 30_000
ZOOM = 2
FOUND = (255, 64, 64)


def draw_boxes(
    image: Path,
    truth: Sequence[Sequence[float]],
    found: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> Image.Image:
    """The image at twice its size with true boxes (white) and found boxes (red, labelled).

    Boxes are [x1, y1, x2, y2] in pixels of the image.
    """
    with Image.open(image) as source:
        picture = source.convert("RGB")
    picture = picture.resize((picture.width * ZOOM, picture.height * ZOOM))
    draw = ImageDraw.Draw(picture)
    for box in truth:
        draw.rectangle([v * ZOOM for v in box], outline=(255, 255, 255))
    for box, label in zip(found, labels, strict=True):
        draw.rectangle([v * ZOOM for v in box], outline=FOUND)
        draw.text((box[0] * ZOOM + 2, box[1] * ZOOM + 1), label, fill=FOUND)
    return picture


def draw_masks(
    image: Path, truth: np.ndarray, found: np.ndarray, palette: Sequence[Sequence[int]]
) -> Image.Image:
    """Three panels: the image, the true classes, the found classes.

    Args:
        truth: class indices [H, W], 255 where ignored (drawn black).
        found: class indices [H, W].
        palette: one RGB colour a class.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)
    with Image.open(image) as source:
        panels = [np.asarray(source.convert("RGB"))]
    panels += [colours[np.asarray(m, np.uint8)] for m in (truth, found)]
    return Image.fromarray(np.concatenate(panels, axis=1))


def save_small(picture: Image.Image, path: Path) -> str:
    """Saves a PNG of 30 KB at most, with fewer colours and then fewer pixels if need be.

    Returns:
        The file's name.
    """
    colours = 128
    while True:
        picture.convert("RGB").quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return path.name
        if colours > 32:
            colours //= 2
        else:
            picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))

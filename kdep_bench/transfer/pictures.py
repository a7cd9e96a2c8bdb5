"""Draws predictions on images, as small PNG files for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

MAX_BYTES = 30_000
ZOOM = 2  # enlargement of images with boxes
RED, WHITE = (255, 64, 64), (255, 255, 255)


def draw_boxes(
    image: Image.Image,
    truth: Sequence[Sequence[float]],
    predictions: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> Image.Image:
    """Draws true boxes (white) and predicted boxes (red) on an image at twice its size.

    Args:
        image: the RGB image.
        truth: true boxes [x1, y1, x2, y2] in pixels of the image.
        predictions: predicted boxes, in the same format.
        labels: text for each predicted box.
    """
    canvas = image.resize((image.width * ZOOM, image.height * ZOOM))
    draw = ImageDraw.Draw(canvas)
    for box in truth:
        draw.rectangle([v * ZOOM for v in box], outline=WHITE)
    for box, label in zip(predictions, labels, strict=True):
        draw.rectangle([v * ZOOM for v in box], outline=RED)
        draw.text((box[0] * ZOOM + 2, box[1] * ZOOM + 1), label, fill=RED)
    return canvas


def draw_masks(
    image: Path, truth: np.ndarray, prediction: np.ndarray, palette: Sequence[Sequence[int]]
) -> Image.Image:
    """Draws three panels side by side: the image, the true classes, the predicted classes.

    Args:
        image: path of the image.
        truth: class indices [H, W]; ignored pixels (255) are drawn black.
        prediction: class indices [H, W].
        palette: one RGB colour per class.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)
    with Image.open(image) as source:
        panels = [np.asarray(source.convert("RGB"))]
    panels += [colours[np.asarray(m, np.uint8)] for m in (truth, prediction)]
    return Image.fromarray(np.concatenate(panels, axis=1))


def save_small(image: Image.Image, path: Path) -> str:
    """Saves a PNG of at most 30 KB; reduces the number of colours, and then the size, if necessary.

    Returns:
        the name of the file.
    """
    colours = 128  # in the palette of the PNG
    while True:
        image.convert("RGB").quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return path.name
        if colours > 32:
            colours //= 2
        else:
            image = image.resize((image.width * 3 // 4, image.height * 3 // 4))

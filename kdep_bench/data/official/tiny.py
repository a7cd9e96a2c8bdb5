"""Random images, masks and boxes for the tiny copies of official sets, in the real formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE = (64, 48)  # width, height


def noise_image(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An image of smooth coloured noise, [h, w, 3] uint8.

    Args:
        rng: random numbers.
        size: (width, height).
    """
    w, h = size
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-12, 13, (h, w, 3))
    return np.clip(smooth.astype(int) + grain, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> Path:
    """Writes an image, [h, w, 3] RGB or [h, w] grey, uint8, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def mask(
    rng: np.random.Generator,
    classes: int,
    size: tuple[int, int] = SIZE,
    ignore: int | None = None,
) -> np.ndarray:
    """A mask [h, w] uint8 with a random class in each quarter.

    Args:
        rng: random numbers.
        classes: number of classes; values are 0..classes-1.
        size: (width, height).
        ignore: value of a line of pixels between the quarters; None: no such line.
    """
    w, h = size
    out = np.empty((h, w), np.uint8)
    for rows in (slice(0, h // 2), slice(h // 2, h)):
        for columns in (slice(0, w // 2), slice(w // 2, w)):
            out[rows, columns] = rng.integers(classes)
    if ignore is not None:
        out[h // 2], out[:, w // 2] = ignore, ignore
    return out


def save_palette(path: Path, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Path:
    """Writes class numbers [h, w] as a PNG with a colour palette, the format of VOC's masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, mode="P")
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    image.putpalette(table.ravel().tolist())
    image.save(path)
    return path


def box(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[int, int, int, int]:
    """A random box (x0, y0, x1, y1), x1 and y1 exclusive, in an image of `size` (width, height).

    Its sides are a quarter to a half of the image's.
    """
    w, h = size
    box_w, box_h = int(rng.integers(w // 4, w // 2)), int(rng.integers(h // 4, h // 2))
    x, y = int(rng.integers(0, w - box_w)), int(rng.integers(0, h - box_h))
    return x, y, x + box_w, y + box_h


def write_lines(path: Path, rows: Sequence[str]) -> Path:
    """Writes a text file with one row per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def save_mat(path: Path, tables: Mapping[str, Any]) -> Path:
    """Writes a MATLAB file that depends only on `tables`.

    The current time, which scipy writes into the header, is overwritten.
    """
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(tables))
    with path.open("r+b") as f:
        f.write(b"MATLAB 5.0 MAT-file".ljust(116))  # the header begins with 116 bytes of text
    return path

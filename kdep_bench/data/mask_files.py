"""Reads a segmentation mask: a PNG with one 8-bit channel of class numbers."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kdep_bench.data.images import check_complete, check_regular
from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError


class MaskInfo(NamedTuple):
    """Size and pixel counts of one mask.

    Attributes:
        size: width and height in pixels.
        counts: [256] int64, number of pixels with each value.
        sha256: SHA-256 of the file, in hex.
        palette: (value, RGB colour) for each value that occurs; () for a mask without a palette.
    """

    size: tuple[int, int]
    counts: np.ndarray
    sha256: str
    palette: tuple[tuple[int, tuple[int, ...]], ...]


def read_mask(path: Path) -> MaskInfo:
    """Reads one mask and counts its pixels by value.

    Raises:
        KdepError: not a complete PNG, or not one 8-bit channel of class numbers.
    """
    check_regular(path)
    data = path.read_bytes()
    check_complete(data, path)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        mode, size = image.mode, image.size
        _check_mode(path, mode, data)
        values = np.asarray(image)
    except KdepError:
        raise
    except Exception as e:
        raise KdepError(
            f"the mask {shown(path)} cannot be read ({str(e) or type(e).__name__})",
            expected="a PNG of class numbers",
            fix="save or copy it again",
        ) from None
    counts = np.bincount(values.ravel(), minlength=256).astype(np.int64)
    palette: tuple[tuple[int, tuple[int, ...]], ...] = ()
    if mode == "P":
        table = image.getpalette("RGB") or []  # R, G, B of value 0, then of value 1, ...
        values = [int(v) for v in np.flatnonzero(counts) if 3 * v + 3 <= len(table)]
        palette = tuple((v, tuple(table[3 * v : 3 * v + 3])) for v in values)
    return MaskInfo(size, counts, hashlib.sha256(data).hexdigest(), palette)


def _check_mode(path: Path, mode: str, data: bytes) -> None:
    numbers = "one 8-bit channel of class numbers"
    if mode == "1":
        raise KdepError(
            f"the mask {shown(path)} has 1 bit per pixel",
            expected=numbers,
            fix="save it as class numbers 0 and 1: "
            "Image.open(f).convert('L').point(lambda v: v // 255).save(f)",
        )
    if mode == "L" and len(data) > 24 and data[24] < 8:  # byte 24 of a PNG: bits per channel
        top = (1 << data[24]) - 1
        raise KdepError(
            f"the mask {shown(path)} has {data[24]} bits per pixel, which image readers scale to "
            "0..255",
            expected=numbers,
            fix=f"save it as class numbers: Image.open(f).point(lambda v: v * {top} // "
            "255).save(f)",
        )
    if mode.startswith("I"):
        raise KdepError(
            f"the mask {shown(path)} has 16 bits per pixel",
            expected=numbers,
            fix="save it with 8 bits per pixel: "
            "Image.fromarray(numpy.asarray(Image.open(f)).astype('uint8')).save(f)",
        )
    if mode in ("RGB", "RGBA", "LA", "PA"):  # a letter per channel
        raise KdepError(
            f"the mask {shown(path)} has {len(mode)} channels (mode {mode})",
            expected=numbers,
            fix="if its first channel holds the class numbers: "
            "Image.open(f).getchannel(0).save(f); if it shows colours, replace each colour by its "
            "class number",
        )
    if mode not in ("L", "P"):
        raise KdepError(
            f"the mask {shown(path)} has the mode {mode}", expected=numbers, fix="save it in mode L"
        )

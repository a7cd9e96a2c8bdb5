"""Fixed views: V random crops of every pool image, drawn once and stored decoded.

A view is a crop box and a flip of one pool image. The student reads it at its resolution from a
memory-mapped uint8 array; for the teacher cache the same box is rendered at the teacher's
resolution. So a teacher feature belongs to exactly the pixels that the student sees, as recommended
by Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent". All
methods, student seeds and suites with the same data and the same settings of the views share them,
so training needs no decoding and no augmentation.

Row order: row = image * V + view.
"""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.lib.format import open_memmap

from kdep_bench.data.images import read_rgb
from kdep_bench.data.listing import list_images, shown
from kdep_bench.devices import cores
from kdep_bench.errors import KdepError, how_to_rebuild
from kdep_bench.files import (
    canonical_json,
    file_hash,
    plain_text,
    read_strict,
    text_hash,
    write_json,
)
from kdep_bench.prefetch import prefetch

PIXELS, RECIPE, LISTING = "student.npy", "recipe.npz", "images.json"  # files of stage `views`
SELECTION = 20220321  # distinguishes the selection of images from other uses of the same seed


@dataclass(frozen=True)
class Views:
    """The opened views of one pool: R = N * V rows of N images with V views each.

    Attributes:
        root: folder of the pool images.
        files: N image paths relative to `root`, sorted.
        box: [R, 4] float32, x0, y0, width, height as fractions of the image's sides.
        flip: [R] bool, whether the crop is mirrored left-right.
        views: V, the number of views per image.
        pixels: [R, px, px, 3] uint8 RGB, memory-mapped.
    """

    root: Path
    files: list[str]
    box: np.ndarray
    flip: np.ndarray
    views: int
    pixels: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.flip)


def draw_recipe(
    images: int, views: int, seed: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the crop boxes and flips of all views, similarly to torchvision's RandomResizedCrop.

    Differences: the image is treated as square, and sides longer than the image are clipped.

    Args:
        images: N, the number of images.
        views: V, the number of views per image.
        seed: random seed.
        scale: smallest and largest area as a fraction of the image; uniformly distributed.
        ratio: smallest and largest aspect ratio; its logarithm is uniformly distributed.

    Returns:
        boxes [N*V, 4] (see `Views.box`) and flips [N*V].
    """
    rng = np.random.default_rng([seed, images, views])
    n = images * views
    area = rng.uniform(*scale, n)
    aspect = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), n))
    w = np.minimum(np.sqrt(area * aspect), 1.0)
    h = np.minimum(np.sqrt(area / aspect), 1.0)
    x = rng.uniform(0, 1, n) * (1 - w)
    y = rng.uniform(0, 1, n) * (1 - h)
    return np.stack([x, y, w, h], 1).astype(np.float32), rng.random(n) < 0.5


def render(image: np.ndarray, box: np.ndarray, flip: bool, px: int) -> np.ndarray:
    """Crops a decoded image [H, W, 3] to `box`, resizes it to [px, px, 3] and flips it if `flip`.

    The resize averages over areas when it shrinks both sides, otherwise it is bilinear.
    """
    h, w = image.shape[:2]
    x0, y0 = int(box[0] * w), int(box[1] * h)
    x1 = min(w, max(x0 + 1, round(float(box[0] + box[2]) * w)))
    y1 = min(h, max(y0 + 1, round(float(box[1] + box[3]) * h)))
    crop = image[y0:y1, x0:x1]
    interpolation = cv2.INTER_AREA if min(crop.shape[:2]) >= px else cv2.INTER_LINEAR
    out = cv2.resize(crop, (px, px), interpolation=interpolation)
    return out[:, ::-1] if flip else out


def pixel_bytes(images: int, views: int, px: int) -> int:
    """Bytes of the rendered views: [images * views, px, px, 3] uint8."""
    return images * views * px * px * 3


def check_disk_space(need: int, folder: Path, subject: str) -> None:
    """Raises KdepError if fewer than `need` bytes are free at `folder`.

    Checked in advance, because writing to a memory map on a full disk kills the process (SIGBUS).
    The error begins with `subject`, a plural noun for the data to be written.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise KdepError(
            f"{subject} need {need / 1e9:.1f} GB of disk space (they are stored decoded), but "
            f"{folder} has only {free / 1e9:.1f} GB free",
            fix="free disk space, choose a larger disk with --work-dir, or lower budget.views",
        )


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Stage `views`: draws boxes and flips, and renders every view at the student's size.

    Args:
        spec: `views`, `seed`, `scale` and `ratio` (see `draw_recipe`); `px`, the side of a rendered
            view in pixels; `pool`, the folder of the images relative to the data folder (default
            `pool/images`).
        inputs: folder of stage `prepare`.
        out: folder of this stage.
        progress: called with (images done, images, note).

    Returns:
        rows (images * views), images, views (per image), px, fingerprint (hash of the image names
        and of all rendered pixels), bytes (of these pixels).

    Raises:
        KdepError: an empty pool, an image that cannot be decoded, or not enough disk space.
    """
    root = inputs["prepare"] / "data" / spec.get("pool", "pool/images")
    files = list_images(root).images
    if not files:
        raise KdepError(
            f"the pool {shown(root.resolve())} contains no image",
            fix="add images there, or correct `pool` in the data config",
        )
    v, px = int(spec["views"]), int(spec["px"])
    subject = f"the views of {len(files)} images, {v} of each at {px} px,"
    check_disk_space(pixel_bytes(len(files), v, px), out, subject)
    box, flip = draw_recipe(
        len(files), v, int(spec["seed"]), tuple(spec["scale"]), tuple(spec["ratio"])
    )
    pixels = open_memmap(out / PIXELS, mode="w+", dtype=np.uint8, shape=(len(files) * v, px, px, 3))

    def draw(i: int) -> None:
        image = read_rgb(root / files[i])
        for k in range(i * v, (i + 1) * v):
            pixels[k] = render(image, box[k], bool(flip[k]), px)

    threads = cores() if cores() > 1 else 0
    for i, _ in enumerate(prefetch(draw, range(len(files)), threads)):
        progress(i + 1, len(files), "rendering views")
    pixels.flush()
    np.savez(out / RECIPE, box=box, flip=flip)
    write_json(out / LISTING, {"pool": spec.get("pool", "pool/images"), "files": files, "views": v})
    return {
        "rows": len(flip),
        "images": len(files),
        "views": v,
        "px": px,
        "fingerprint": text_hash(canonical_json([files, file_hash(out / PIXELS)])),
        "bytes": int(pixels.nbytes),
    }


def open_views(views_dir: Path, prepare_dir: Path | None = None) -> Views:
    """Opens a finished `views` stage.

    Args:
        views_dir: folder of the stage.
        prepare_dir: folder of the `prepare` stage; needed only to read source images again.

    Raises:
        KdepError: files that cannot be read or are inconsistent.
    """
    try:
        listing = read_strict(views_dir / LISTING)
        with np.load(views_dir / RECIPE) as stored:
            recipe = {name: stored[name] for name in ("box", "flip")}
        pixels = np.load(views_dir / PIXELS, mmap_mode="r")
        listing = {name: listing[name] for name in ("files", "views", "pool")}
        rows = len(listing["files"]) * listing["views"]
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as e:
        raise KdepError(
            f"the views in {views_dir} cannot be read ({type(e).__name__}: {plain_text(e)})",
            fix=how_to_rebuild(views_dir),
        ) from None
    if len(pixels) != len(recipe["flip"]) or len(pixels) != rows:
        raise KdepError(
            f"the views in {views_dir} are inconsistent: {len(pixels)} rendered, "
            f"{len(recipe['flip'])} drawn, {len(listing['files'])} images",
            expected="images x views rows in each",
            fix=how_to_rebuild(views_dir),
        )
    root = (prepare_dir / "data" / listing["pool"]) if prepare_dir else Path()
    return Views(root, listing["files"], recipe["box"], recipe["flip"], listing["views"], pixels)


def subset(images: int, fraction: float, seed: int = 0) -> np.ndarray:
    """Sorted indices of a random fraction of the images, selected without labels.

    It takes the first `round(fraction * images)` of a seeded permutation. So the images of a
    fraction of 1 % are among those of 10 %.

    Raises:
        KdepError: unless 0 < fraction <= 1 and at least one image is selected.
    """
    count = round(fraction * images)
    if not 0 < fraction <= 1 or count < 1:
        raise KdepError(
            f"a data fraction of {fraction} of {images} images selects {count} images",
            expected="a fraction in (0, 1] that selects at least one image",
            fix="correct `shares` in the suite",
        )
    return np.sort(np.random.default_rng([seed, SELECTION]).permutation(images)[:count])

"""ADE20K scene parsing (2016): ADEChallengeData2016/{images,annotations}/{training,validation}/.

Masks contain 0 for 'other' and 1..150 for the classes; mmseg's `reduce_zero_label` changes 0 to 255
and 1..150 to 0..149.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kdep_bench.data.checks import check_image
from kdep_bench.data.listing import list_images
from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive
from kdep_bench.data.official.base import (
    OfficialSet,
    how_to_unpack_again,
    need_dir,
    need_files,
)
from kdep_bench.errors import KdepError

FOLDER = "ADEChallengeData2016"
_UNPACK_AGAIN = how_to_unpack_again("ade20k")
CLASSES = 150
_HOMEPAGE = "http://sceneparsing.csail.mit.edu/"


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that images and masks exist in pairs of equal size, and mask values are 0..150.

    Returns counts; see `OfficialSet.verify`.
    """
    base, counts = folder / FOLDER, {}
    for split in ("training", "validation"):
        images = need_dir(base / "images" / split, "the images of ADEChallengeData2016.zip")
        masks = need_dir(base / "annotations" / split, "the masks of ADEChallengeData2016.zip")
        names = [n.removesuffix(".jpg") for n in list_images(images).images if n.endswith(".jpg")]
        if not names:
            raise KdepError(f"the folder {images} contains no *.jpg", fix=_UNPACK_AGAIN)
        need_files(masks, (f"{n}.png" for n in names), images)
        need_files(images, _image_names(masks), masks)
        step = 1 if n_decoded is None else max(1, len(names) // max(n_decoded, 1))
        evenly_spaced = names[::step][:n_decoded]
        for name in evenly_spaced:
            _check_pair(images / f"{name}.jpg", masks / f"{name}.png")
        counts[f"{split}_images"] = len(names)
    return counts


def _image_names(masks: Path) -> list[str]:
    """The file names of the images that belong to the masks."""
    names = list_images(masks).images
    return [n.removesuffix(".png") + ".jpg" for n in names if n.endswith(".png")]


def _check_pair(image: Path, mask: Path) -> None:
    """Raises KdepError for a mask of another size or mode, or with values above 150."""
    info, image_info = check_image(mask), check_image(image)
    if info.mode not in ("L", "P"):
        raise KdepError(
            f"the mask {mask} has mode {info.mode}",
            expected="one 8-bit channel",
            fix="use ADEChallengeData2016.zip; this mask is of the full ADE20K release",
        )
    if (info.width, info.height) != (image_info.width, image_info.height):
        raise KdepError(
            f"the mask {mask} is {info.width}x{info.height}",
            expected=f"{image_info.width}x{image_info.height}, the size of its image",
            fix=_UNPACK_AGAIN,
        )
    with Image.open(mask) as opened:
        largest = int(np.asarray(opened).max())
    if largest > CLASSES:
        raise KdepError(
            f"the mask {mask} contains the value {largest}",
            expected=f"0..{CLASSES}",
            fix=_UNPACK_AGAIN,
        )


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 4 training and 2 validation images with masks of values 0..150."""
    base = folder / FOLDER
    for split, short_name, count in (("training", "train", 4), ("validation", "val", 2)):
        for i in range(1, count + 1):
            name = f"ADE_{short_name}_{i:08d}"
            draw.save(base / "images" / split / f"{name}.jpg", draw.noise_image(rng))
            labels = draw.mask(rng, CLASSES) + 1
            labels[:4] = 0  # the first rows: other
            draw.save(base / "annotations" / split / f"{name}.png", labels.astype(np.uint8))


SET = OfficialSet(
    name="ade20k",
    title="ADE20K scene parsing (2016)",
    homepage=_HOMEPAGE,
    # Images: http://groups.csail.mit.edu/vision/datasets/ADE20K/terms. Annotations and code: the
    # licence tag that the challenge's authors gave huggingface.co/datasets/scene_parse_150.
    licence="images: non-commercial research; annotations and code: BSD-3-Clause",
    archives=(
        Archive(
            "ADEChallengeData2016.zip",
            _HOMEPAGE,
            "7328b3957e407ddae1d3cbf487f149ef",
            "used by several public loaders; no official MD5 is published",
        ),
    ),
    counts={"training_images": 20210, "validation_images": 2000},
    verify=verify,
    tiny=tiny,
)

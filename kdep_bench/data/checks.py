"""Checks of data sets before training: single images, COCO, Cityscapes, class folders.

Each check raises KdepError for the first fault. Without a fault it returns what it checked: the
size of an image, or counts.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdep_bench.data.listing import (
    IMAGE_SUFFIXES,
    class_names,
    is_image_name,
    list_images,
    reason_to_skip,
    shown,
)
from kdep_bench.data.mask_files import read_mask
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json

IGNORE = 255  # train id of pixels that are ignored in training and in the score (Cityscapes)
_ORIENTATION = 0x0112  # number of the EXIF tag
_EIGHT_BIT = {"RGB", "L", "P"}
_FETCH = "copy or download it again"
_PREPARE_AGAIN = "run the suite again with --verify: it prepares missing or damaged data again"


class ImageFormat(NamedTuple):
    """Size in pixels and PIL mode of an image."""

    width: int
    height: int
    mode: str


def check_image(path: str | Path, alpha: bool = False) -> ImageFormat:
    """Decodes the whole image, and returns its size and mode.

    Args:
        path: path of the image.
        alpha: whether an alpha channel is accepted.

    Raises:
        KdepError: missing, empty, not an image, truncated or damaged, too large, 16-bit, CMYK, of
            another unsupported type, or with an alpha channel that is not accepted.
    """
    path = Path(path)
    _check_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                info = ImageFormat(*image.size, image.mode)
    except UnidentifiedImageError:
        head = path.read_bytes()[:8]
        raise KdepError(
            f"the file {path} is not an image (it begins with {head!r})",
            expected="JPEG, PNG, WebP, BMP or TIFF",
            fix=_FETCH,
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        raise KdepError(
            f"the image {path} is too large ({e})",
            expected="under 89 megapixels",
            fix="reduce its size",
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        fault = "truncated" if "truncated" in str(e).lower() else "damaged"
        raise KdepError(f"the image {path} is {fault} ({e})", fix=_FETCH) from None
    _check_mode(path, info.mode, alpha)
    return info


def check_upright(path: str | Path) -> None:
    """Raises KdepError for an image with an EXIF orientation other than 1 (upright).

    OpenCV rotates such an image and PIL does not, so boxes and masks fit for one reader only.
    """
    with Image.open(path) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        raise KdepError(
            f"the image {path} is stored rotated or mirrored (EXIF orientation {orientation}); "
            "some image readers rotate it and others do not",
            fix="rotate its pixels with "
            "PIL.ImageOps.exif_transpose(Image.open(f)).save(...), and check that its boxes and "
            "masks still fit",
        )


def _check_bytes(path: Path) -> None:
    if not path.is_file():
        raise KdepError(f"the image {path} does not exist", fix="restore it, or correct its path")
    try:
        is_empty = path.stat().st_size == 0
        with path.open("rb") as f:
            f.read(1)
    except OSError as e:
        raise KdepError(
            f"the image {path} cannot be read ({e.strerror})", fix="check its permissions"
        ) from None
    if is_empty:
        raise KdepError(f"the image {path} is empty (0 bytes)", fix=_FETCH)


def _check_mode(path: Path, mode: str, alpha: bool) -> None:
    if mode in _EIGHT_BIT or (alpha and mode in ("RGBA", "LA")):
        return
    name = {"CMYK": "CMYK", "YCCK": "CMYK", "RGBA": "RGB with alpha", "LA": "grey with alpha"}
    is_deep = mode.startswith("I") or mode == "F"
    fault = "16-bit or deeper" if is_deep else name.get(mode, "of an unsupported type")
    raise KdepError(
        f"the image {path} is {fault} (mode {mode})",
        expected="8-bit RGB or grey",
        fix="convert it, for example with PIL: Image.open(f).convert('RGB').save(...)",
    )


def check_coco(
    json_path: str | Path, image_dir: str | Path | None = None, n_decoded: int | None = None
) -> dict[str, int]:
    """Checks a COCO annotation file and its images.

    Args:
        json_path: annotation file (https://cocodataset.org/#format-data).
        image_dir: folder of the images; all must exist. None: only the json is checked.
        n_decoded: number of images to decode; None: all.

    Returns:
        {images, annotations, categories, decoded}.

    Raises:
        KdepError: duplicate or dangling ids, unknown categories, boxes outside the image or
            without area, missing or broken images, sizes that differ from the json.
    """
    json_path = Path(json_path)
    table = read_json(json_path)
    keys = ("images", "annotations", "categories")
    if not isinstance(table, dict) or any(not isinstance(table.get(k), list) for k in keys):
        content = sorted(table) if isinstance(table, dict) else type(table).__name__
        raise KdepError(
            f"the file {json_path} contains {content}",
            expected="lists named images, annotations, categories",
            fix="export the annotations as COCO json",
        )
    for key in ("images", "categories"):
        if not table[key]:
            raise KdepError(
                f"the list {key} in {json_path} is empty", fix="export the annotations again"
            )
    images, _, categories = (_by_id(json_path, key, table[key]) for key in keys)
    for annotation in table["annotations"]:
        _check_annotation(json_path, annotation, images, categories)
    decoded = 0
    if image_dir is not None:
        decoded = _check_coco_images(json_path, Path(image_dir), table["images"], n_decoded)
    return {k: len(table[k]) for k in keys} | {"decoded": decoded}


def _by_id(path: Path, kind: str, items: list[Any]) -> dict[Hashable, dict[str, Any]]:
    """The entries by id; raises KdepError for an id that is missing, repeated or not an integer."""
    out: dict[Hashable, dict[str, Any]] = {}
    for position, item in enumerate(items):
        if not isinstance(item, dict) or type(item.get("id")) is not int:
            raise KdepError(
                f"entry {position} of {kind} in {path} has no integer id",
                fix="give every entry an integer id",
            )
        if item["id"] in out:
            raise KdepError(
                f"the id {item['id']} occurs twice in {kind} of {path}",
                fix="renumber the entries (merged files often have duplicate ids)",
            )
        out[item["id"]] = item
    return out


def _check_annotation(
    path: Path,
    annotation: dict[str, Any],
    images: dict[Hashable, dict[str, Any]],
    categories: dict[Hashable, dict[str, Any]],
) -> None:
    subject = f"annotation {annotation['id']} in {path}"
    image = _get(images, annotation.get("image_id"))
    if image is None:
        raise KdepError(
            f"{subject} points to image id {annotation['image_id']!r:.80}, which is not in images"
            if annotation.get("image_id") is not None
            else f"{subject} has no image_id",
            expected=f"one of {len(images)} image ids",
            fix="remove the annotation or add the image entry",
        )
    if _get(categories, annotation.get("category_id")) is None:
        raise KdepError(
            f"{subject} has category id {annotation['category_id']!r:.80}, which is not in "
            "categories"
            if annotation.get("category_id") is not None
            else f"{subject} has no category_id",
            expected=f"one of {len(categories)} category ids",
            fix="correct the id or add the category",
        )
    _check_box(subject, annotation, image)


def _get(items: dict[Hashable, dict[str, Any]], item_id: Any) -> dict[str, Any] | None:
    """The item with this id; None if there is none or the id is not an integer."""
    # `items.get` alone would accept True and 1.0 as the id 1, and raise TypeError for a list.
    return items.get(item_id) if type(item_id) is int else None


def _check_box(subject: str, annotation: dict[str, Any], image: dict[str, Any]) -> None:
    box = annotation.get("bbox")
    number_types = (int, float)
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, number_types) and math.isfinite(v) for v in box)
    ):
        raise KdepError(
            f"{subject} has no bbox" if box is None else f"{subject} has the bbox {box!r}",
            expected="[x, y, width, height] in pixels",
            fix="correct the box, or remove the annotation",
        )
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise KdepError(
            f"{subject} has a bbox without area: {box}",
            expected="width and height above 0",
            fix="remove it",
        )
    width, height = image.get("width"), image.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        raise KdepError(
            f"{subject}: the entry of its image {image.get('file_name')} has no width and height",
            fix="add them to the image's entry",
        )
    # 0.5 px of tolerance: COCO rounds to 0.01 px, and some of its boxes end at width + 0.49.
    if x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
        raise KdepError(
            f"{subject} has the bbox {box}, outside its image of {width}x{height}",
            expected="x >= 0, y >= 0, x + width <= image width, y + height <= image height",
            fix="clip the box; if many are outside, they may be [x1, y1, x2, y2]",
        )
    area = annotation.get("area")
    if not isinstance(area, number_types) or not area > 0:
        raise KdepError(
            f"{subject} has no area" if area is None else f"{subject} has the area {area!r}",
            expected="a number above 0",
            fix="compute it from the object's mask or box",
        )


def _check_coco_images(
    json_path: Path, folder: Path, images: list[dict[str, Any]], n_decoded: int | None
) -> int:
    if not folder.is_dir():
        raise KdepError(
            f"the image folder {folder} of {json_path} does not exist", fix=_PREPARE_AGAIN
        )
    names = [str(image.get("file_name")) for image in images]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise KdepError(
            f"{len(missing)} of {len(images)} images named in {json_path} are not in {folder}, "
            f"the first is {missing[0]}",
            fix=_PREPARE_AGAIN,
        )
    count = len(images) if n_decoded is None else min(n_decoded, len(images))
    for image in images[:count]:
        info = check_image(folder / image["file_name"])
        stated = image.get("width"), image.get("height")
        if stated != (info.width, info.height):
            raise KdepError(
                f"the image {folder / image['file_name']} is {info.width}x{info.height}",
                expected=f"{stated[0]}x{stated[1]}, the size in {json_path}",
                fix="download both again: annotations and images are of different versions",
            )
    return count


def check_segmentation(
    tree: str | Path,
    num_classes: int,
    splits: Sequence[str] = ("train", "val", "test"),
    mask_suffix: str = "_gtFine_labelTrainIds.png",
    limit: int | None = None,
    fix: str = _PREPARE_AGAIN,
) -> dict[str, int]:
    """Checks images and masks in the Cityscapes layout.

    The layout is leftImg8bit/<split>/<city>/*_leftImg8bit.png for images and
    gtFine/<split>/<city>/*<mask_suffix> for masks of train ids.

    Args:
        tree: folder that contains leftImg8bit and gtFine.
        num_classes: masks may contain 0..num_classes-1 and 255.
        splits: names of the splits to check.
        mask_suffix: end of the mask's file name, where an image has "_leftImg8bit.png".
        limit: number of pairs to check per split; None: all.
        fix: the fix of the error about a split without images.

    Returns:
        {split: number of pairs checked}.

    Raises:
        KdepError: a folder, image or mask is missing, sizes differ, or a mask contains other
            values (label ids instead of train ids).
    """
    tree = Path(tree)
    counts = {}
    for split in splits:
        images, masks = tree / "leftImg8bit" / split, tree / "gtFine" / split
        names = _stems(images, "_leftImg8bit.png")
        if not names:
            raise KdepError(
                f"the folder {images} contains no *_leftImg8bit.png",
                expected="a Cityscapes tree: leftImg8bit/<split>/<city>/ and "
                "gtFine/<split>/<city>/",
                fix=fix,
            )
        _check_pairs(names, _stems(masks, mask_suffix), images, masks, mask_suffix)
        chosen = sorted(names)[:limit]
        for name in chosen:
            info = check_image(images / f"{name}_leftImg8bit.png")
            _check_mask(masks / f"{name}{mask_suffix}", info, num_classes)
        counts[split] = len(chosen)
    return counts


def _stems(folder: Path, suffix: str) -> set[str]:
    """Relative paths of the images below `folder` that end in `suffix`, with the suffix removed."""
    names = list_images(folder).images if folder.is_dir() else ()
    return {n.removesuffix(suffix) for n in names if n.endswith(suffix)}


def _check_pairs(
    images: set[str], masks: set[str], image_dir: Path, mask_dir: Path, suffix: str
) -> None:
    if unpaired := sorted(images - masks):
        fix = "download the masks of this split"
        if suffix.endswith("labelTrainIds.png") and _stems(mask_dir, "_gtFine_labelIds.png"):
            fix = "create them from labelIds with cityscapesscripts' createTrainIdLabelImgs"
        raise KdepError(
            f"{len(unpaired)} images in {image_dir} have no mask, the first is {unpaired[0]}",
            expected=f"{mask_dir / (unpaired[0] + suffix)}",
            fix=fix,
        )
    if unpaired := sorted(masks - images):
        raise KdepError(
            f"{len(unpaired)} masks in {mask_dir} have no image, the first is {unpaired[0]}",
            expected=f"{image_dir / (unpaired[0] + '_leftImg8bit.png')}",
            fix="download the images of this split",
        )


def _check_mask(path: Path, image: ImageFormat, num_classes: int) -> None:
    info = read_mask(path)
    if info.size != image[:2]:
        raise KdepError(
            f"the mask {path} is {info.size[0]}x{info.size[1]}",
            expected=f"{image.width}x{image.height}, the size of its image",
            fix="download both again; if you resize masks, use nearest-neighbour interpolation",
        )
    wrong = [int(v) for v in np.flatnonzero(info.counts) if v >= num_classes and v != IGNORE]
    if wrong:
        raise KdepError(
            f"the mask {path} contains the values {wrong[:12]}, which look like labelIds instead "
            "of trainIds",
            expected=f"0..{num_classes - 1} and {IGNORE}",
            fix="use the *_labelTrainIds.png files, or correct `classes` in the task's recipe",
        )


def check_image_folder(
    root: str | Path,
    classes: Iterable[str] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Checks a folder with one folder of images per class.

    This is the layout of mmpretrain's CustomDataset and torchvision's ImageFolder.

    Args:
        root: folder that contains the class folders.
        classes: expected names of the class folders; None: any names.
        limit: number of images to decode per class; None: all.
        progress: called with (classes done, classes).

    Returns:
        {class: number of images}.

    Raises:
        KdepError: a class folder is missing, unexpected or empty, or a file is not an image or is
            damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise KdepError(
            f"the image folder {root} does not exist",
            expected="a folder of class folders",
            fix=_PREPARE_AGAIN,
        )
    expected = _expected_classes(root, classes)
    counts = {}
    for done, name in enumerate(expected):
        counts[name] = _check_class(root / name, limit)
        if progress:
            progress(done + 1, len(expected))
    return counts


def _expected_classes(root: Path, classes: Iterable[str] | None) -> list[str]:
    """Sorted names of the class folders; raises KdepError if `classes` is given and differs."""
    present = class_names(root)
    with os.scandir(root) as entries:
        unsorted = sorted(e.name for e in entries if is_image_name(e.name) and e.is_file())
    if unsorted := [n for n in unsorted if not reason_to_skip(n, is_dir=False)]:
        raise KdepError(
            f"the image {shown(root / unsorted[0])} is not in a class folder",
            fix="move it into the folder of its class, or out of the data set",
        )
    expected = sorted(classes) if classes is not None else present
    if not expected:
        raise KdepError(
            f"the folder {root} has no class folders",
            expected="one folder per class",
            fix=_PREPARE_AGAIN,
        )
    for name in expected:
        if name not in present:
            raise KdepError(
                f"the class folder {root / name} is missing (classes: {expected})",
                fix=_PREPARE_AGAIN,
            )
    if extra := sorted(set(present) - set(expected)):
        raise KdepError(
            f"the class folder {root / extra[0]} is not among the classes",
            expected=f"only {', '.join(expected)}",
            fix="move it elsewhere; an extra class shifts the numbers of the others",
        )
    return expected


def _check_class(folder: Path, limit: int | None) -> int:
    files = list_images(folder)
    if files.other_files:
        raise KdepError(
            f"the file {shown(folder / files.other_files[0])} does not have an image suffix",
            expected=", ".join(sorted(IMAGE_SUFFIXES)),
            fix="move it elsewhere, or give it the suffix of its format",
        )
    if not files.images:
        raise KdepError(f"the class folder {shown(folder)} is empty", fix="add its images")
    for name in files.images[:limit]:
        check_image(folder / name)
    return len(files.images)

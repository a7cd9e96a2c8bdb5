"""The user's segmentation data: pairs images with masks, and counts pixels by class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.images import ImageInfo, check_orientation
from kdep_bench.data.listing import list_images, shown
from kdep_bench.data.mask_files import MaskInfo, read_mask
from kdep_bench.data.own.names import listed
from kdep_bench.data.own.spec import IGNORE, DataConfig
from kdep_bench.devices import cores
from kdep_bench.errors import KdepError, first_of
from kdep_bench.faults import Faults
from kdep_bench.prefetch import prefetch

FOLDER = "cityscapes"
IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"  # suffixes of the Cityscapes layout


@dataclass
class Masks:
    """The pairs of image and mask of one split.

    Attributes:
        images: the user's folder of images.
        folder: the user's folder of masks.
        pairs: (image, mask), paths of the user's files.
        counts: [256] number of pixels by value, summed over all masks.
        hashes: SHA-256 of each mask that was read.
        without_image: number of masks that have no image in the split.
        skipped: number of skipped entries of the image folder, by reason (see `Listing`).
    """

    images: Path
    folder: Path
    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    hashes: dict[Path, str] = field(default_factory=dict)
    without_image: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def find_all(config: DataConfig, faults: Faults) -> dict[str, Masks]:
    """Pairs images and masks by split; a mask is a PNG with the same name as its image."""
    splits = {}
    for split, (images, folder) in config.masks.items():
        with faults.collect():
            splits[split] = _pairs(images, folder, faults)
    _check_shared_files(splits, config, faults)
    return splits


def _check_shared_files(splits: Mapping[str, Masks], config: DataConfig, faults: Faults) -> None:
    """Adds a fault if one file is a mask of two splits, for example if a folder is a link."""
    first: dict[str, tuple[str, Path]] = {}
    for split, masks in splits.items():
        for _, mask in masks.pairs:
            earlier, known = first.setdefault(os.path.realpath(mask), (split, mask))
            pair = frozenset((f"masks/{split}", f"masks/{earlier}"))
            if earlier != split and pair not in config.allow_duplicates:
                faults.add(
                    KdepError(
                        f"the mask {shown(mask)} of {split} and {shown(known)} of {earlier} are "
                        "the same file",
                        fix="correct the link, or the paths of `masks` in the data config; each "
                        "split needs its own masks",
                    ),
                    f"{masks.folder} shared",
                )


def _pairs(images: Path, folder: Path, faults: Faults) -> Masks:
    """Pairs the images of a split with its masks; adds a fault for each image without its own mask.

    Raises:
        KdepError: there is no image.
    """
    listing = list_images(images)
    out = Masks(images, folder, skipped=dict(listing.skipped))
    by_mask: dict[str, str] = {}
    # Only masks of this listing, because the hash of the data covers no other files.
    listed_masks = set(list_images(folder).images)
    for name in listing.images:
        mask = str(Path(name).with_suffix(".png"))
        if earlier := by_mask.get(mask):
            faults.add(
                KdepError(
                    f"the images {shown(images / earlier)} and {shown(images / name)} have the "
                    f"same mask, {shown(folder / mask)}",
                    fix="rename one of the images, and its mask accordingly",
                ),
                f"{images} twins",
            )
            continue
        by_mask[mask] = name
        if mask not in listed_masks or not (folder / mask).is_file():
            faults.add(
                KdepError(
                    f"the image {shown(images / name)} has no mask",
                    expected=shown(folder / mask),
                    fix="add the mask; masks are PNGs of class numbers, named like their images",
                ),
                f"{images} no mask",
            )
            continue
        out.pairs.append((images / name, folder / mask))
    if not listing.images:
        raise KdepError(
            f"the folder {images} contains no image", fix="correct `masks` in the data config"
        )
    out.without_image = len(listed_masks - set(by_mask))
    return out


def read_all(
    splits: Mapping[str, Masks], info: Mapping[Path, ImageInfo], config: DataConfig, faults: Faults
) -> None:
    """Reads all masks, counts their pixels, and checks sizes, values and palettes."""
    colours: dict[int, tuple[tuple[int, ...], Path]] = {}
    classes = config.classes
    for masks in splits.values():
        files = [mask for _, mask in masks.pairs]
        threads = cores()
        results = prefetch(_try_read, files, threads if threads > 1 else 0)
        for (image, mask), result in zip(masks.pairs, results, strict=True):
            if isinstance(result, KdepError):
                faults.add(result, f"{masks.folder} unreadable")
                continue
            masks.counts += result.counts
            masks.hashes[mask] = result.sha256
            with faults.collect(f"{masks.folder} size"):
                _check_size(image, mask, result, info)
            with faults.collect(f"{masks.folder} values"):
                _check_values(mask, result, len(classes))
            with faults.collect(f"{masks.folder} palette"):
                _check_palette(mask, result, colours)


def _try_read(path: Path) -> MaskInfo | KdepError:
    """Reads a mask; returns the KdepError instead of raising it."""
    try:
        return read_mask(path)
    except KdepError as fault:
        return fault


def _check_size(image: Path, mask: Path, info: MaskInfo, images: Mapping[Path, ImageInfo]) -> None:
    if image not in images:
        return  # the image has a fault, which is already reported
    image_info = images[image]
    check_orientation(image, image_info, *info.size, f"its mask {shown(mask)}")
    if info.size != image_info.upright:
        raise KdepError(
            f"the mask {shown(mask)} is {info.size[0]}x{info.size[1]}",
            expected=f"{image_info.upright[0]}x{image_info.upright[1]}, the size of its image "
            f"{shown(image)}",
            fix="copy both again; if you resize masks, use nearest-neighbour interpolation",
        )


def _check_values(mask: Path, info: MaskInfo, classes: int) -> None:
    wrong = [int(v) for v in np.flatnonzero(info.counts) if v >= classes and v != IGNORE]
    if wrong and classes:
        raise KdepError(
            f"the mask {shown(mask)} contains the values {first_of(wrong, 12)}",
            expected=f"0..{classes - 1} for the {classes} names in `classes`, and {IGNORE} for "
            "pixels to ignore",
            fix="add the missing classes to the data config, or replace these values",
        )


def _check_palette(
    mask: Path, info: MaskInfo, colours: dict[int, tuple[tuple[int, ...], Path]]
) -> None:
    for value, colour in info.palette:
        known, first = colours.setdefault(value, (colour, mask))
        if known != colour:
            raise KdepError(
                f"the value {value} has the colour {colour} in the palette of {shown(mask)} and "
                f"{known} in that of {shown(first)}",
                expected="the same palette in all masks (if each file has its own palette, the "
                "class numbers differ from file to file)",
                fix="convert colours to class numbers with one table for all masks",
            )


def check_counts(splits: Mapping[str, Masks], config: DataConfig, faults: Faults) -> None:
    """Adds a fault for each split whose classes cannot be trained or scored.

    Call it only if all masks were read and are valid.
    """
    counts = {s: m.counts[: len(config.classes)] for s, m in splits.items()}
    total = np.sum(list(counts.values()), axis=0)
    for split, masks in splits.items():
        if not counts[split].any():
            faults.add(
                KdepError(
                    f"all pixels of the masks in {masks.folder} are {IGNORE}, which is ignored",
                    expected=f"class numbers 0..{len(config.classes) - 1}",
                    fix="write class numbers into the masks of this split",
                )
            )
    if len(faults) or "train" not in splits:
        return
    train, folder = counts["train"], splits["train"].folder
    missing = [
        c for i, c in enumerate(config.classes) if not train[i] and c not in config.allow_absent
    ]
    if missing:
        elsewhere = [c for c in missing if total[config.classes.index(c)]]
        where = (
            f"although other splits have {listed(elsewhere, 500)}"
            if elsewhere
            else "and no other split has it either"
        )
        number = config.classes.index(missing[0])
        values = ", ".join(str(config.classes.index(c)) for c in missing)
        # 255 often stands for the second class of a binary mask, or for the one class not labelled.
        binary = len(config.classes) == 2 and any(m.counts[IGNORE] for m in splits.values())
        is_written_as_255 = binary or (splits["train"].counts[IGNORE] and len(missing) == 1)
        faults.add(
            KdepError(
                f"no pixel of the masks in {folder} has the class {listed(missing, 500)} (mask "
                f"value {values}), {where}",
                fix=f"replace {IGNORE}, which means 'ignore', by {number} where the masks should "
                f"have {missing[0]!r}"
                if is_written_as_255
                else f"correct `classes` or the masks, or add {missing[0]!r} to `allow_absent` in "
                "the data config",
            )
        )
        return
    for split, masks in splits.items():
        present = [c for i, c in enumerate(config.classes) if counts[split][i]]
        if len(present) < 2:
            faults.add(
                KdepError(
                    f"all labelled pixels of the masks in {masks.folder} have the class "
                    f"{listed(present)}, so any network would get the full score",
                    fix="add masks with other classes, or correct their values",
                )
            )


def layout_paths(split: str, masks: Masks, data: Path, faults: Faults) -> tuple[dict, dict]:
    """Paths of a split's images and masks in the task's layout: ({image: path}, {mask: path})."""
    images: dict[Path, Path] = {}
    labels: dict[Path, Path] = {}
    stems: dict[str, Path] = {}
    for image, mask in masks.pairs:
        stem = shown("-".join(image.relative_to(masks.images).with_suffix("").parts))
        stem = stem.replace("\\", "%")  # of the escapes \\xNN that `shown` writes
        if earlier := stems.get(stem):
            faults.add(
                KdepError(
                    f"the images {shown(earlier)} and {shown(image)} get the same name, {stem!r}, "
                    "because '/' is replaced by '-' in the layout of the task",
                    fix="rename one of the images, and its mask accordingly",
                )
            )
            continue
        stems[stem] = image
        images[image] = data / FOLDER / "leftImg8bit" / split / "own" / f"{stem}{IMAGE}"
        labels[mask] = data / FOLDER / "gtFine" / split / "own" / f"{stem}{MASK}"
    return images, labels


def copy_notes(splits: Mapping[str, Masks], config: DataConfig) -> list[str]:
    """A note for each split whose masks are all equal to masks of the training split."""
    names = {
        s: {(p.relative_to(m.folder), h) for p, h in m.hashes.items()} for s, m in splits.items()
    }
    return [
        f"every mask of {split} equals the mask of train with the same name: one folder may be a "
        "copy of the other"
        for split, own_masks in names.items()
        if split != "train"
        and frozenset((f"masks/{split}", "masks/train")) not in config.allow_duplicates
        and own_masks <= names.get("train", set())
    ]


def card(splits: Mapping[str, Masks], classes: Sequence[str]) -> dict[str, Any]:
    """Counts of pixels by split and class, for the data card."""
    return {
        "classes": list(classes),
        "splits": {
            split: {
                "images": len(m.pairs),
                "pixels": {c: int(m.counts[i]) for i, c in enumerate(classes)},
                "ignored_pixels": int(m.counts[IGNORE]),
                "masks_without_image": m.without_image,
            }
            for split, m in splits.items()
        },
    }


def notes(config: DataConfig, counted: Mapping[str, Any]) -> list[str]:
    """Notes on classes without pixels, to show with the scores on these masks.

    `counted`: the result of `card`.
    """
    out, classes = [], counted["classes"]
    train = counted["splits"].get("train", {"pixels": {}})["pixels"]
    for split, row in counted["splits"].items():
        absent = [c for c in classes if not row["pixels"][c]]
        if split != "train" and absent:
            out.append(
                f"{split} has no pixel of {listed(absent)}: such a class counts in the mean IoU "
                "only if a network predicts it, then with IoU 0"
            )
    allowed = sorted(c for c in config.allow_absent if c in classes and not train.get(c))
    if allowed:
        out.append(f"train has no pixel of {listed(allowed)} (allowed by the data config)")
    return out

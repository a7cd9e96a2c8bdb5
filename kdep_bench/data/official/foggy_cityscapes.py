"""Foggy Cityscapes for detection: clear and foggy street scenes, and the boxes of their objects.

    leftImg8bit/<split>/<city>/          the clear scenes of Cityscapes
    leftImg8bit_foggy/<split>/<city>/    the same scenes in simulated fog, of attenuation 0.02
    gtFine/<split>/<city>/               masks with instance ids
    annotations/{clear,foggy}_{train,val}.json    boxes in COCO's format, written by `convert`

Sakaridis et al., "Semantic Foggy Scene Understanding with Synthetic Data", IJCV 2018. The boxes are
those of the instances in the masks, of the eight classes with instances. Clear and foggy files have
the same boxes, image ids and annotation ids, and differ in the names of the images. A group of
objects that the annotators did not separate has no instance number: it is a crowd (iscrowd = 1). It
is no object in training, where its area counts as background, and is ignored in the score.

Instance ids are from cityscapesScripts, `helpers/labels.py` and `preparation/json2instanceImg.py`:
1000 * label id + number of the instance, or the label id alone for a group.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive, Progress
from kdep_bench.data.official.base import (
    OfficialSet,
    decode_some,
    how_to_unpack_again,
    need_dir,
    need_files,
)
from kdep_bench.data.official.cityscapes import files_of
from kdep_bench.data.user_json import read_user_json
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, write_atomic

_HOMEPAGE = "https://www.cityscapes-dataset.com/downloads/"
#: Label id -> name of the classes with instances.
CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
SPLITS = ("train", "val")
INSTANCES = "_gtFine_instanceIds.png"
# Folder and suffix of the images of each domain. The archive also has fog of attenuation 0.005 and
# 0.01; work on domain adaptation reports 0.02, the densest.
DOMAINS = {
    "clear": ("leftImg8bit", "_leftImg8bit.png"),
    "foggy": ("leftImg8bit_foggy", "_leftImg8bit_foggy_beta_0.02.png"),
}
FIRST_INSTANCE = 1000  # ids from here on are of single instances


def annotation_file(folder: Path, domain: str, split: str) -> Path:
    """The file with the boxes of a split. `folder`: folder of the set; `domain`: see DOMAINS."""
    return folder / "annotations" / f"{domain}_{split}.json"


def boxes_of(ids: np.ndarray) -> list[dict[str, Any]]:
    """The objects in a mask of instance ids [H, W], in the order of their ids.

    Returns:
        one dict per object of CLASSES: category_id, bbox [x, y, width, height] in pixels, area
        (number of pixels) and iscrowd.
    """
    objects = []
    for number in np.unique(ids).tolist():
        is_crowd = number < FIRST_INSTANCE
        category = number if is_crowd else number // 1000
        if category not in CLASSES:
            continue
        rows, columns = np.nonzero(ids == number)
        x, y = int(columns.min()), int(rows.min())
        size = [int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        objects.append(
            {
                "category_id": category,
                "bbox": [x, y, *size],
                "area": len(rows),
                "iscrowd": int(is_crowd),
            }
        )
    return objects


def convert(folder: Path, progress: Progress) -> None:
    """Writes the annotation files of all domains and splits; existing ones are replaced.

    Raises:
        KdepError: there are no masks, or one cannot be read.
    """
    for split in SPLITS:
        masks = files_of(folder / "gtFine" / split, INSTANCES)
        if not masks:
            raise KdepError(
                f"the folder {folder / 'gtFine' / split} contains no mask *{INSTANCES}",
                expected="the files of gtFine_trainvaltest.zip",
                fix=how_to_unpack_again("foggy_cityscapes"),
            )
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, mask in enumerate(masks):
            ids = _read_mask(mask)
            height, width = ids.shape
            stem = f"{mask.parent.name}/{mask.name.removesuffix(INSTANCES)}"
            images.append({"id": i + 1, "file_name": stem, "width": width, "height": height})
            for box in boxes_of(ids):
                annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **box})
            progress(i + 1, len(masks), f"boxes of {split}")
        categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
        for domain, (_, suffix) in DOMAINS.items():
            named = [{**image, "file_name": image["file_name"] + suffix} for image in images]
            table = {"images": named, "annotations": annotations, "categories": categories}
            write_atomic(annotation_file(folder, domain, split), canonical_json(table))


def _read_mask(path: Path) -> np.ndarray:
    """Instance ids [H, W]; raises KdepError if the file is not a 16-bit mask."""
    try:
        with Image.open(path) as opened:
            ids = np.asarray(opened)
    except (OSError, SyntaxError) as e:  # Pillow raises SyntaxError for a damaged PNG
        raise KdepError(
            f"the mask {path} cannot be read ({e})",
            expected="a PNG of gtFine_trainvaltest.zip",
            fix=how_to_unpack_again("foggy_cityscapes"),
        ) from None
    if ids.ndim != 2 or ids.dtype not in (np.uint16, np.int32):  # as Pillow reads 16 bits
        raise KdepError(
            f"the mask {path} has {ids.ndim} dimensions of {ids.dtype}",
            expected="a grey image of 16 bits with instance ids",
            fix=how_to_unpack_again("foggy_cityscapes"),
        )
    return ids


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that the images of every annotation file exist, and decodes some of them.

    Returns the counts of images, by names such as "train_clear_images"; see `OfficialSet.verify`.
    """
    need_dir(folder / "gtFine", "the folder of gtFine_trainvaltest.zip")
    counts: dict[str, int] = {}
    for domain, (name, _) in DOMAINS.items():
        for split in SPLITS:
            path = annotation_file(folder, domain, split)
            table = read_user_json(path)
            images = need_dir(folder / name / split, "the images of an archive of Cityscapes")
            file_names = [image["file_name"] for image in table["images"]]
            need_files(images, file_names, path)
            decode_some([images / f for f in file_names], n_decoded)
            counts[f"{split}_{domain}_images"] = len(file_names)
    for split in SPLITS:
        masks = folder / "gtFine" / split
        names = [f.relative_to(masks).as_posix() for f in files_of(masks, INSTANCES)]
        count = need_files(masks, names, masks)
        if counts[f"{split}_clear_images"] != count:
            raise KdepError(
                f"{annotation_file(folder, 'clear', split)} has {counts[f'{split}_clear_images']} "
                f"images, but gtFine/{split} has {count} masks",
                expected="one image per mask",
                fix=how_to_unpack_again("foggy_cityscapes"),
            )
    return counts


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 8 training and 4 validation scenes with three objects each, one of them a group."""
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            stem = f"{split}/tinytown/tinytown_{i:06d}_000019"
            scene = draw.noise_image(rng)
            pixels = {"clear": scene, "foggy": (scene // 2 + 100).astype(np.uint8)}
            for domain, (name, suffix) in DOMAINS.items():
                draw.save(folder / name / f"{stem}{suffix}", pixels[domain])
            ids = np.full(scene.shape[:2], 7, np.uint16)  # road
            for number in range(3):
                label = int(rng.choice(list(CLASSES)))
                x0, y0, x1, y1 = draw.box(rng)
                ids[y0:y1, x0:x1] = label if number == 0 else 1000 * label + number
            draw.save(folder / "gtFine" / f"{stem}{INSTANCES}", ids)
    convert(folder, lambda *_: None)


SET = OfficialSet(
    name="foggy_cityscapes",
    title="Foggy Cityscapes (detection)",
    homepage=_HOMEPAGE,
    licence="Cityscapes licence: non-commercial",
    archives=(
        Archive("leftImg8bit_trainvaltest.zip", _HOMEPAGE),
        Archive("leftImg8bit_trainvaltest_foggy.zip", _HOMEPAGE),
        Archive("gtFine_trainvaltest.zip", _HOMEPAGE),
    ),
    counts={
        "train_clear_images": 2975,
        "val_clear_images": 500,
        "train_foggy_images": 2975,
        "val_foggy_images": 500,
    },
    verify=verify,
    tiny=tiny,
    convert=convert,
    notes=("archives not compared with official checksums, which only registered users can see",),
)

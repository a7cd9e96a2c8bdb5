"""COCO 2017 detection: train2017/, val2017/, annotations/instances_{train,val}2017.json.

Crowd regions (iscrowd = 1, run-length masks) are ignored in training (mmdet sets their
`ignore_flag`) and in the score (by pycocotools).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.checks import check_image
from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive
from kdep_bench.data.official.base import (
    OfficialSet,
    how_to_unpack_again,
    need_dir,
    need_files,
)
from kdep_bench.data.user_json import read_user_json
from kdep_bench.errors import KdepError

_HOMEPAGE = "https://cocodataset.org/#download"
_UNPACK_AGAIN = how_to_unpack_again("coco")
_MD5_SOURCE = "used by several public download scripts; no official MD5 is published"
SPLITS = ("train2017", "val2017")
#: COCO's 80 categories, id -> name; the ids have gaps.
NAMES = json.loads(
    '{"1":"person","2":"bicycle","3":"car","4":"motorcycle","5":"airplane","6":"bus","7":"train",'
    '"8":"truck","9":"boat","10":"traffic light","11":"fire hydrant","13":"stop sign",'
    '"14":"parking meter","15":"bench","16":"bird","17":"cat","18":"dog","19":"horse","20":"sheep",'
    '"21":"cow","22":"elephant","23":"bear","24":"zebra","25":"giraffe","27":"backpack",'
    '"28":"umbrella","31":"handbag","32":"tie","33":"suitcase","34":"frisbee","35":"skis",'
    '"36":"snowboard","37":"sports ball","38":"kite","39":"baseball bat","40":"baseball glove",'
    '"41":"skateboard","42":"surfboard","43":"tennis racket","44":"bottle","46":"wine glass",'
    '"47":"cup","48":"fork","49":"knife","50":"spoon","51":"bowl","52":"banana","53":"apple",'
    '"54":"sandwich","55":"orange","56":"broccoli","57":"carrot","58":"hot dog","59":"pizza",'
    '"60":"donut","61":"cake","62":"chair","63":"couch","64":"potted plant","65":"bed",'
    '"67":"dining table","70":"toilet","72":"tv","73":"laptop","74":"mouse","75":"remote",'
    '"76":"keyboard","77":"cell phone","78":"microwave","79":"oven","80":"toaster","81":"sink",'
    '"82":"refrigerator","84":"book","85":"clock","86":"vase","87":"scissors","88":"teddy bear",'
    '"89":"hair drier","90":"toothbrush"}'
)


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks ids, the 80 categories, that all images exist, and the sizes of `n_decoded` images.

    Returns counts; see `OfficialSet.verify`.
    """
    counts: dict[str, int] = {}
    for split in SPLITS:
        path = folder / "annotations" / f"instances_{split}.json"
        table = read_user_json(path)
        check_table(path, table)
        images = need_dir(folder / split, f"the images of {split}.zip")
        need_files(images, (i["file_name"] for i in table["images"]), path)
        step = 1 if n_decoded is None else max(1, len(table["images"]) // max(n_decoded, 1))
        evenly_spaced = table["images"][::step][:n_decoded]
        for image in evenly_spaced:
            _check_size(images / image["file_name"], image, path)
        counts |= {
            f"{split}_images": len(table["images"]),
            "categories": len(table["categories"]),
        }
    return counts


def check_table(path: Path, table: Any) -> dict[str, int]:
    """Checks the lists and ids of an annotation file.

    Args:
        path: the file, for errors.
        table: its parsed content.

    Returns:
        the numbers of images, annotations and crowd regions.

    Raises:
        KdepError: the first fault.
    """
    if not isinstance(table, dict) or not all(
        isinstance(table.get(k), list) for k in ("images", "annotations", "categories")
    ):
        raise KdepError(
            f"the file {path} is not a detection annotation file",
            expected="lists named images, annotations and categories",
            fix="use instances_*.json, not captions_* or person_keypoints_*",
        )
    _check_entries(path, table)
    names = {str(c["id"]): c["name"] for c in table["categories"]}
    if names != NAMES:
        different = sorted(set(names.items()) ^ set(NAMES.items()))
        raise KdepError(
            f"the {len(names)} categories of {path} are not those of COCO; the first difference is "
            f"{different[0]}",
            expected="the 80 ids and names of COCO 2017",
            fix=f"{_UNPACK_AGAIN}; for your own boxes, copy configs/data/mine.py",
        )
    images = {i["id"] for i in table["images"]}
    if len(images) != len(table["images"]):
        raise KdepError(
            f"the file {path} has a duplicate image id",
            fix=f"download annotations_trainval2017.zip again, then {_UNPACK_AGAIN}",
        )
    crowds = 0
    for annotation in table["annotations"]:
        category = annotation["category_id"]
        if annotation["image_id"] not in images or str(category) not in names:
            raise KdepError(
                f"annotation {annotation['id']} in {path} has image {annotation['image_id']} and "
                f"category {category}",
                expected="ids that exist in the file",
                fix=f"download annotations_trainval2017.zip again, then {_UNPACK_AGAIN}",
            )
        crowds += annotation.get("iscrowd", 0)
    return {"images": len(images), "annotations": len(table["annotations"]), "crowds": crowds}


#: List -> the required keys of its entries, with their types.
_KEYS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


def _check_entries(path: Path, table: dict[str, Any]) -> None:
    """Raises KdepError for the first entry with a missing key or a value of another type."""
    for list_name, keys in _KEYS.items():
        for position, item in enumerate(table[list_name]):
            entry = item if isinstance(item, dict) else {}
            wrong = next((k for k, kind in keys.items() if type(entry.get(k)) is not kind), None)
            if wrong is None and type(entry.get("iscrowd", 0)) is not int:
                wrong = "iscrowd"
            if wrong is not None:
                raise KdepError(
                    f"entry {position} of {list_name} in {path} has the {wrong} "
                    f"{entry.get(wrong)!r:.80}",
                    expected="integers for ids, sizes and iscrowd, strings for names",
                    fix=_UNPACK_AGAIN,
                )


def _check_size(file: Path, stated: dict[str, Any], path: Path) -> None:
    """Raises KdepError if an image has another size than `stated` in the annotation file `path`."""
    info = check_image(file)
    if (info.width, info.height) != (stated["width"], stated["height"]):
        raise KdepError(
            f"the image {file} is {info.width}x{info.height}",
            expected=f"{stated['width']}x{stated['height']}, the size in {path}",
            fix="download images and annotations again: they are of different versions",
        )


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 8 training and 4 validation images with two objects each.

    Every fourth object is a crowd with a run-length mask.
    """
    for split, count in (("train2017", 8), ("val2017", 4)):
        images, annotations = [], []
        for i in range(1, count + 1):
            file = f"{i:012d}.jpg"
            draw.save(folder / split / file, draw.noise_image(rng))
            size = {"width": draw.SIZE[0], "height": draw.SIZE[1]}
            images.append({"id": i, "file_name": file, **size})
            for _ in range(2):
                annotations.append(_object(rng, len(annotations) + 1, i))
        table = {
            "info": {"description": "tiny copy in COCO's format"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": int(i), "name": n, "supercategory": ""} for i, n in NAMES.items()
            ],
        }
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(table))


def _object(rng: np.random.Generator, number: int, image: int) -> dict[str, Any]:
    """An annotation with a random box; `number` and `image` are its id and its image's id."""
    x0, y0, x1, y1 = draw.box(rng)
    w, h = x1 - x0, y1 - y0
    width, height = draw.SIZE
    is_crowd = number % 4 == 0
    if is_crowd:
        # Lengths of runs of 0 and 1 in turn, column by column: COCO's uncompressed RLE.
        counts = [x0 * height + y0]
        for _ in range(w - 1):
            counts += [h, height - h]
        counts += [h, width * height - (x1 - 1) * height - y1]
        shape: Any = {"counts": counts, "size": [height, width]}
    else:
        shape = [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]]
    return {
        "id": number,
        "image_id": image,
        "category_id": int(list(NAMES)[int(rng.integers(len(NAMES)))]),
        "bbox": [float(x0), float(y0), float(w), float(h)],
        "area": float(w * h),
        "iscrowd": int(is_crowd),
        "segmentation": shape,
    }


SET = OfficialSet(
    name="coco",
    title="COCO 2017",
    homepage=_HOMEPAGE,
    # cocodataset/cocodataset.github.io, dataset/termsofuse.htm.
    licence="annotations: CC BY 4.0; images: Flickr terms of use",
    archives=(
        Archive("train2017.zip", _HOMEPAGE, "cced6f7f71b7629ddf16f17bbcfab6b2", _MD5_SOURCE),
        Archive("val2017.zip", _HOMEPAGE, "442b8da7639aecaf257c1dceb8ba8c80", _MD5_SOURCE),
        Archive(
            "annotations_trainval2017.zip",
            _HOMEPAGE,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            _MD5_SOURCE,
        ),
    ),
    counts={"train2017_images": 118287, "val2017_images": 5000, "categories": 80},
    verify=verify,
    tiny=tiny,
)

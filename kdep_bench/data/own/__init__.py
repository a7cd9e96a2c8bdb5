"""Stage `prepare` over data of one's own: checked, and linked in the layout that the tasks read.

    pool/images, pool/labels.json          `pool`: any images; labels from class folders alone
    classify/{train,val,test}/<class>/     `classify`: folders of class folders
    detect/{split}, detect/annotations/    `coco`: a COCO json and its images for each split
    cityscapes/...                         `masks`: images, and masks of the same names

Nothing is copied. Paths are absolute, or relative to $KDEP_DATA.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.checks import (
    check_coco,
    check_image,
    check_image_folder,
    check_segmentation,
    check_upright,
)
from kdep_bench.data.listing import list_images, shown
from kdep_bench.data.official.base import ROOT
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import canonical_json, read_json, write_atomic

_SPLITS = dict.fromkeys(("train", "val", "test"))
# Keys of the data config; below `classify`, `coco` and `masks` the usual names of splits.
KEYS: dict[str, Any] = {
    **dict.fromkeys(("type", "name", "pool", "pool_labels", "classes", "decode")),
    **dict.fromkeys(("classify", "coco", "masks"), _SPLITS),
}


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Stage `prepare` of a suite on data of one's own.

    Spec: `pool` folder of images for pre-training; `pool_labels` True where its sub-folders are
    classes (a supervised arm needs them); `classify` {split: folder}; `coco` {split: {json,
    images}}; `masks` {split: {images, masks}} and `classes`, their names by mask value; `decode`
    images of each part to read in full (default 64, None for all).

    Raises:
        KdepError: the first fault, with its file and what to do.
    """
    if unknown := set(spec) - set(KEYS):
        raise unknown_name("key of the data", sorted(unknown)[0], KEYS)
    data, decode = out / "data", spec.get("decode", 64)
    data.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Any] = {"pool": _pool(spec, data, decode)}
    for split, folder in _splits(spec, "classify"):
        check_image_folder(_path(folder), limit=decode)
        _link(_path(folder), data / "classify" / split)
        counts[f"classify/{split}"] = len(_images(_path(folder)))
    if spec.get("coco"):
        counts |= _coco(_splits(spec, "coco"), data, decode)
    if spec.get("masks"):
        counts |= _masks(spec, data, decode)
    text = canonical_json([counts, sorted(_listing(data))])
    progress(1, 1, "done")
    return {
        "data": "data",
        "source": "own",
        "fingerprint": hashlib.sha256(os.fsencode(text)).hexdigest(),
        "counts": {"images": counts},
        "licences": {},
        "notes": [],
    }


def _splits(spec: Mapping[str, Any], part: str) -> list[tuple[str, Any]]:
    """The splits that `part` of the data config names; a split that is None is left out."""
    return [(s, value) for s, value in (spec.get(part) or {}).items() if value is not None]


def _path(given: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_absolute() and os.environ.get(ROOT):
        path = Path(os.environ[ROOT]) / path
    if not path.exists():
        raise KdepError(
            f"the path {path} of the data config does not exist",
            f"an absolute path, or one relative to ${ROOT}",
            "correct the config",
        )
    return path.resolve()


def _images(folder: Path) -> list[Path]:
    return [folder / name for name in list_images(folder).images]


def _pool(spec: Mapping[str, Any], data: Path, decode: int | None) -> int:
    pool = _path(spec["pool"])
    listing = list_images(pool)
    if listing.others:
        raise KdepError(
            f"the file {shown(pool / listing.others[0])} of the pool is no image",
            "images alone",
            "move it elsewhere",
        )
    names = listing.images
    if not names:
        raise KdepError(f"the pool {pool} holds no image", "at least one", "correct `pool`")
    for name in names[:decode]:
        check_image(pool / name)
        check_upright(pool / name)
    _link(pool, data / "pool" / "images")
    if spec.get("pool_labels"):
        if loose := [n for n in names if "/" not in n]:
            raise KdepError(
                f"the image {loose[0]} of the pool lies in no class folder",
                "one folder a class where pool_labels=True",
                "move it into its class, or set pool_labels=False and drop the supervised arm",
            )
        classes = sorted({n.split("/")[0] for n in names})
        labels = {n: classes.index(n.split("/")[0]) for n in names}
        text = canonical_json({"classes": classes, "labels": labels})
        write_atomic(data / "pool" / "labels.json", text)
    return len(names)


def _coco(parts: list[tuple[str, Any]], data: Path, decode: int | None) -> dict[str, int]:
    counts, categories = {}, {}
    for split, part in parts:
        json, images = _path(part["json"]), _path(part["images"])
        counts[f"detect/{split}"] = check_coco(json, images, decode)["images"]
        table = read_json(json)
        for image in table["images"][:decode]:
            check_upright(images / image["file_name"])
        categories[split] = {c["id"]: c["name"] for c in table["categories"]}
        if (first := next(iter(categories.values()))) != categories[split]:
            odd = sorted(map(str, set(first.items()) ^ set(categories[split].items())))
            raise KdepError(
                f"the class list of {json} disagrees with that of {next(iter(categories))}: "
                f"{', '.join(odd[:3])}",
                "the same ids and names in every split",
                "export all splits with one list of categories",
            )
        _link(images, data / "detect" / split)
        _link(json, data / "detect" / "annotations" / f"{split}.json")
    return counts


def _masks(spec: Mapping[str, Any], data: Path, decode: int | None) -> dict[str, int]:
    tree, counts = data / "cityscapes", {}
    for split, part in _splits(spec, "masks"):
        images, masks = _path(part["images"]), _path(part["masks"])
        files = _images(images)
        for file in files:
            mask = masks / file.relative_to(images).with_suffix(".png")
            if not mask.is_file():
                raise KdepError(
                    f"the image {file} has no mask",
                    f"{mask}",
                    "masks are PNGs of class numbers, named like their images",
                )
            stem = f"{split}/own/{'-'.join(file.relative_to(images).with_suffix('').parts)}"
            _link(file, tree / "leftImg8bit" / f"{stem}_leftImg8bit.png")
            _link(mask, tree / "gtFine" / f"{stem}_gtFine_labelTrainIds.png")
        for file in files[:decode]:
            check_upright(file)
        counts[f"cityscapes/{split}"] = len(files)
    if not spec.get("classes"):
        raise KdepError("the data config has `masks` and no `classes`", "their names by mask value")
    check_segmentation(tree, len(spec["classes"]), tuple(spec["masks"]), limit=decode)
    return counts


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or link.exists():
        raise KdepError(
            f"two parts of the data come to {link}", "each file once", "rename one of them"
        )
    link.symlink_to(target)


def _listing(data: Path) -> list[str]:
    """Name and size of everything linked."""
    rows = []
    for base, folders, files in os.walk(data, followlinks=True):
        folders.sort()
        rows += [
            f"{os.path.relpath(p, data)} {p.stat().st_size}"
            for p in map(Path(base).joinpath, files)
        ]
    return rows

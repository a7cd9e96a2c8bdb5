"""The pocket data: small data sets in standard formats, composed locally from real photographs.

`prepare` writes, under out/data,
    manifest.json, checksums.txt (sha256sum format)
    pool/images/00/000123.jpg, pool/labels.json        pre-training images; labels: supervised only
    classify/{train,val,test}/<class>/0123.jpg         held-out objects on held-out backgrounds
    photos/<class>/<name>.jpg                          real photographs, no composites
    detect/{train,val,test}/000001.jpg, detect/annotations/{split}.json      COCO format
    cityscapes/{leftImg8bit,gtFine}/{split}/pocket/pocket_000001_000019_*    Cityscapes layout
No source object (nor another image of it) and no background is in two of pool, train, val, test.
An image depends only on (seed, kind, split, index), so the number of processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Progress = Callable[..., None]
DEFAULTS: dict[str, Any] = {
    "name": "pocket",
    "seed": 0,
    "source": "auto",
    "px": 128,
    "pool_composites": 24000,
    "pool_crops": 8000,
    "classify": {"train": 1600, "val": 400, "test": 1600},
    "scenes": {"train": 400, "val": 100, "test": 300},
    "scene_size": [160, 120],
}


def reads(spec: dict[str, Any]) -> dict[str, list]:
    """No files (see `kdep_bench.data.content`): the data is generated from pinned packages."""
    return {}


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Progress
) -> dict[str, Any]:
    """Stage `prepare`: writes the pocket data into out/data.

    Args:
        spec: values that replace those of DEFAULTS.

    Returns:
        {data, fingerprint, source, counts, classes, licences, notes, images_per_s}; the last is the
        number of images drawn per second.

    Raises:
        KdepError: an unknown key or bad value, missing or unreadable source images, a full disk.
    """
    from kdep_bench.data.pocket.make import checked_spec, images_in, make
    from kdep_bench.data.pocket.material import gather

    spec = checked_spec(spec)
    progress(0, images_in(spec), "reading photographs and cut-outs")
    return make(spec, gather(spec["source"]), Path(out), progress)

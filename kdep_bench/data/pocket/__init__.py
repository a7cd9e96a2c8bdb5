"""The pocket data: small real-format data sets composed from real photographs, made locally.

`prepare` writes, under out/data,
    manifest.json, checksums.txt (sha256sum format)
    pool/images/00/000123.jpg, pool/labels.json        label-free pool; labels for one arm only
    classify/{train,val,test}/<class>/0123.jpg         held-out objects on held-out backgrounds
    photos/<class>/<name>.jpg                          real photographs, no composites
    detect/{train,val,test}/000001.jpg, detect/annotations/{split}.json      COCO format
    cityscapes/{leftImg8bit,gtFine}/{split}/pocket/pocket_000001_000019_*    Cityscapes layout
No source object (with its twins) and no background is in two of pool, train, val, test. An image
is a function of (seed, kind, split, index) alone, so the number of processes changes nothing.
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
    """Nothing: the data is generated from packages whose content is pinned."""
    return {}


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Progress
) -> dict[str, Any]:
    """Stage: writes the pocket data into out/data; `spec` as DEFAULTS, unknown keys refused.

    Returns:
        {data, fingerprint, source, counts, classes, licences, notes, images_per_s (drawn)}.

    Raises:
        KdepError: bad spec, no material, unreadable source image, full disk.
    """
    from kdep_bench.data.pocket.make import checked_spec, images_in, make
    from kdep_bench.data.pocket.material import gather

    spec = checked_spec(spec)
    progress(0, images_in(spec), "reading photographs and cut-outs")
    return make(spec, gather(spec["source"]), Path(out), progress)

"""The pocket data: small data sets in standard formats, composed locally from real photographs.

`prepare` writes, under out/data,
    manifest.json, checksums.txt (sha256sum format)
    pool/images/00/000123.jpg, pool/labels.json        pre-training images; labels for supervised
    classify/{train,val,test}/<class>/0123.jpg         held-out objects on held-out backgrounds
    photos/<class>/<name>.jpg                          real photographs, no composites
    known/<name>.png, known/known.json                 objects of known ImageNet-1k classes
    detect/{train,val,test}/000001.jpg, detect/annotations/{split}.json      COCO format
    cityscapes/{leftImg8bit,gtFine}/{split}/pocket/pocket_000001_000019_*    Cityscapes layout

Objects and backgrounds are divided over pool, train, val and test: images of one object, or of one
place, are only in one of them. The random numbers of an image depend only on (seed, kind, split,
index), so the result does not depend on the number of processes. With source='pip-only' there are
no photos/ and known/.
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
    """The files that `prepare` reads: none, as the data is generated from pinned packages.

    See `kdep_bench.data.content`.
    """
    return {}


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Progress
) -> dict[str, Any]:
    """Stage `prepare`: writes the pocket data into out/data.

    Args:
        spec: values that replace those of DEFAULTS.
        inputs: not used.
        out: folder of the stage.
        progress: called with (images done, images, note).

    Returns:
        data, fingerprint, source, counts, classes, licences, notes, and images_per_s, the number of
        images drawn per second.

    Raises:
        KdepError: an unknown key, an invalid value, missing or unreadable source images, or a full
            disk.
    """
    from kdep_bench.data.pocket.make import images_in, make
    from kdep_bench.data.pocket.material import gather
    from kdep_bench.data.pocket.spec import checked_spec

    spec = checked_spec(spec)
    progress(0, images_in(spec), "reading photographs and cut-outs")
    return make(spec, gather(spec["source"]), Path(out), progress)

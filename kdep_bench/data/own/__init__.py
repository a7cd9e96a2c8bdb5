"""The user's own data: stage `prepare` checks it and writes it in the layout that tasks read.

Files below out/data, with the key of the data config that they come from:

    pool/images, pool/labels.json          `pool`: any images; labels only if in class folders
    classify/{split}/<class>/              `classify`: a folder of class folders per split
    detect/{split}, detect/annotations/    `coco`: a COCO json and its images per split
    cityscapes/...                         `masks`: images and masks with the same names per split

Images are linked, except those that image libraries decode differently (GIF, alpha, 16 bit, ...),
which are converted to PNG. Annotations are sorted, and classes and images are matched by name, so
neither the order in the user's file nor its ids affect a score. Paths in the config are absolute,
or relative to $KDEP_DATA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.data.own.sources import reads as reads

_SPLITS = dict.fromkeys(("train", "val", "test"))
# Keys of the data config. The keys below `classify`, `coco` and `masks` are names of splits.
KEYS: dict[str, Any] = {
    **dict.fromkeys(("type", "name", "pool", "pool_labels", "classes")),
    **dict.fromkeys(("allow_absent", "allow_duplicates")),
    **dict.fromkeys(("classify", "coco", "masks"), _SPLITS),
}


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Stage `prepare` of a suite on the user's data.

    Args:
        spec: the data config, with these keys:
            pool: folder of images for pre-training.
            pool_labels: whether its sub-folders are classes (needed by supervised methods).
            classify: {split: folder of class folders}.
            coco: {split: {json, images}}.
            masks: {split: {images, masks}}.
            classes: class names of the masks, by mask value.
            allow_absent: classes of boxes or masks that the training split may lack.
            allow_duplicates: pairs of sets that may share images: [["pool", "coco/test"], ...].
        inputs: not used.
        out: folder of the stage.
        progress: called with (images done, images, note).

    Returns:
        data, source, counts, licences, notes; fingerprint, a hash of all images and labels;
        task_notes, {folder of a task, such as "detect": [notes to show with its scores]}; card,
        the data card (see `kdep_bench.results.report.data_card`).

    Raises:
        KdepError: lists the faults of the data (at most `faults.MAX_LISTED`), with files and fixes.
    """
    from kdep_bench.data.own.stage import run

    return run(spec, out, progress)


def check_plan(data: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> None:
    """Raises KdepError if the data config contradicts itself or the recipe of a task.

    Reads no file, so that a suite can be planned on a machine without the data.
    """
    from kdep_bench.data.own.spec import (
        check_labels,
        check_parts,
        check_paths,
        check_recipes,
        read_allow_duplicates,
    )
    from kdep_bench.faults import Faults

    check_parts(data)  # the checks below rely on it
    faults = Faults()
    for check in (check_labels, check_paths, read_allow_duplicates):
        with faults.collect():
            check(data)
    with faults.collect():
        check_recipes(data, tasks)
    faults.raise_any(f"the data {data.get('name')!r}")

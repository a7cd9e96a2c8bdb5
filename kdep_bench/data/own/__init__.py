"""The user's data: stage `prepare` checks them and writes them in the layout that tasks read.

    pool/images, pool/labels.json          `pool`: any images; labels from class folders alone
    classify/{split}/<class>/              `classify`: folders of class folders
    detect/{split}, detect/annotations/    `coco`: a COCO json and its images for each split
    cityscapes/...                         `masks`: images, and masks of the same names

Images are linked, except those that image readers decode differently (GIF, alpha, 16 bit, ...),
which are converted to PNG. Annotations are written in a canonical order, so that neither their
order in the file nor their ids affect a score: classes and images are matched by name. Paths are
absolute, or relative to $KDEP_DATA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.data.own.sources import reads as reads

_SPLITS = dict.fromkeys(("train", "val", "test"))
# Keys of the data config; below `classify`, `coco` and `masks` the usual names of splits.
KEYS: dict[str, Any] = {
    **dict.fromkeys(("type", "name", "pool", "pool_labels", "classes")),
    **dict.fromkeys(("allow_absent", "allow_duplicates")),
    **dict.fromkeys(("classify", "coco", "masks"), _SPLITS),
}


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Stage `prepare` of a suite on the user's data.

    Spec: `pool` folder of images for pre-training; `pool_labels` True if its sub-folders are
    classes (supervised methods need them); `classify` {split: folder}; `coco` {split: {json,
    images}}; `masks` {split: {images, masks}} and `classes`, their names by mask value;
    `allow_absent` names of classes of boxes or masks that the training split may lack;
    `allow_duplicates` pairs of sets that may share images: [["pool", "coco/test"], ...].

    Returns:
        data, source, fingerprint (over the content of all images and labels), counts, licences,
        notes, task_notes (notes to show with the scores, by folder of the task: {"detect": [...]}),
        card (counts; see `kdep_bench.results.report.data_card`).

    Raises:
        KdepError: lists the faults of the data (at most `faults.SHOWN`), each with file and fix.
    """
    from kdep_bench.data.own.stage import run

    return run(spec, out, progress)


def check_plan(data: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> None:
    """Raises KdepError if the data config contradicts itself or the recipe of a task.

    Reads no file, so that a suite can be planned on a machine without the data.
    """
    from kdep_bench.data.own.spec import check_labels, check_paths, check_recipes, check_waivers

    check_labels(data)
    check_paths(data)
    check_waivers(data)
    check_recipes(data, tasks)

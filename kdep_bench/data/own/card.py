"""The data card: counts of images, boxes and pixels of a user's data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.images import ImageInfo
from kdep_bench.data.own import boxes, class_folders, masks
from kdep_bench.data.own.parts import DataParts


def make_card(parts: DataParts) -> dict[str, Any]:
    """Counts by part and split.

    Returns:
        {"pool": row, "classify": {"classes": names, "splits": {split: row}}, "detect": likewise,
        "segment": likewise}; parts that the data do not have are left out. A row has `images`;
        `width` and `height`, [smallest, largest] in pixels; `equal_files`, the number of repeated
        images; counts by class; and, if not empty, `normalised` (converted images by reason) and
        `passed_over` (skipped files by reason). "classify", and a pool with labels, also have
        `in_two_classes` (see `class_folders.label_conflicts`).
    """
    pool = {"images": len(parts.pool.images), **_images(parts.pool_files(), parts.info)}
    card: dict[str, Any] = {"pool": pool}
    if parts.labelled is not None:
        by_class = parts.labelled.classes
        pool["by_class"] = {c: len(by_class[c]) for c in sorted(by_class)}
        labelled = {"pool": parts.labelled}
        pool["in_two_classes"] = class_folders.label_conflicts(labelled, parts.info)
    if parts.classify:
        card["classify"] = class_folders.card(parts.classify, parts.info)
    if parts.detect:
        card["detect"] = boxes.card(parts.detect, boxes.class_names(parts.detect))
    if parts.segment:
        card["segment"] = masks.card(parts.segment, parts.config.classes)
    for part, splits in parts.task_files().items():
        for split, files in splits.items():
            card[part]["splits"][split] |= _images(files, parts.info)
    _add_skipped(parts, card)
    return card


def _images(files: list[Path], info: Mapping[Path, ImageInfo]) -> dict[str, Any]:
    file_info = [info[f] for f in files]
    # `upright`: (width, height) after the rotation that the EXIF data state
    widths, heights = zip(*(f.upright for f in file_info), strict=True)
    converted = Counter(reason for f in file_info for reason in f.kinds)
    row: dict[str, Any] = {
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "equal_files": len(file_info) - len({f.sha256 for f in file_info}),
    }
    return row | ({"normalised": dict(sorted(converted.items()))} if converted else {})


def _add_skipped(parts: DataParts, card: dict[str, Any]) -> None:
    rows = [(card["pool"], parts.pool.skipped)]
    rows += [(card["classify"]["splits"][s], f.listing.skipped) for s, f in parts.classify.items()]
    rows += [(card["segment"]["splits"][s], m.skipped) for s, m in parts.segment.items()]
    for row, skipped in rows:
        if skipped:
            # The key of data cards of all versions.
            row["passed_over"] = dict(sorted(skipped.items()))

"""Stage `prepare` for a user's own data: checks all parts, then links the images.

The output has the folders that the tasks' data sets expect (`layout.py`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data import leaks
from kdep_bench.data.image_memory import ImageMemory
from kdep_bench.data.images import ImageInfo, inspect, placed_name
from kdep_bench.data.listing import list_images
from kdep_bench.data.own import boxes, class_folders, masks
from kdep_bench.data.own.card import make_card
from kdep_bench.data.own.layout import Layout
from kdep_bench.data.own.parts import DataParts
from kdep_bench.data.own.spec import read_spec
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.files import canonical_json, write_atomic, write_json

SUBJECT = "the data set"  # begins the error that lists the faults
Progress = Callable[..., None]


def run(spec: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """See `kdep_bench.data.own.prepare`."""
    parts = read_parts(spec, progress)
    fingerprint = _lay_out(parts, out / "data")
    card = make_card(parts)
    progress(0, 1, "comparing the images of all splits")
    shared = leaks.find(parts.sets(), parts.info, parts.config.allow_duplicates)
    card["shared_images"] = leaks.table(shared)
    progress(1, 1, "done")
    return {
        "data": "data",
        "source": "own",
        "fingerprint": fingerprint,
        "counts": {"images": count_images(parts)},
        "licences": {},
        "notes": [],
        "task_notes": _task_notes(parts, card, leaks.notes(shared)),
        "card": card,
    }


def count_images(parts: DataParts) -> dict[str, int]:
    """Number of images per set: "pool", or "<folder of the task>/<split>" ("detect/train")."""
    counts = {"pool": len(parts.pool.images)}
    counts |= {f"{class_folders.FOLDER}/{s}": len(f.files) for s, f in parts.classify.items()}
    counts |= {f"{boxes.FOLDER}/{s}": len(b.sizes) for s, b in parts.detect.items()}
    counts |= {f"{masks.FOLDER}/{s}": len(m.pairs) for s, m in parts.segment.items()}
    return counts


def read_parts(spec: Mapping[str, Any], progress: Progress) -> DataParts:
    """Reads and checks all data; writes nothing.

    Raises:
        KdepError: lists the faults.
    """
    faults = Faults()
    config = read_spec(spec, faults)
    faults.raise_any(SUBJECT)
    assert config.pool is not None
    parts = DataParts(config, list_images(config.pool))
    if config.pool_labels:
        parts.labelled = class_folders.read_pool(config, faults)
    else:
        class_folders.check_other_files(parts.pool, faults)
    if not parts.pool.images:
        faults.add(
            KdepError(
                f"the pool {config.pool} contains no image", fix="correct `pool` in the data config"
            )
        )
    parts.classify = class_folders.read_all(config, faults)
    parts.detect = boxes.read_all(config, faults)
    parts.segment = masks.find_all(config, faults)
    parts.info = _inspect(parts.files(), faults, progress)
    for split in parts.detect.values():
        boxes.check_sizes(split, parts.info, faults)
    masks.read_all(parts.segment, parts.info, config, faults)
    if not len(faults):
        masks.check_counts(parts.segment, config, faults)
    with faults.collect():
        _check_allowed(parts)
    for fault in leaks.check_paths(parts.sets(), config.allow_duplicates):
        faults.add(fault)
    faults.raise_any(SUBJECT)
    return parts


def _inspect(files: list[Path], faults: Faults, progress: Progress) -> dict[Path, ImageInfo]:
    """Reads every image; adds a fault for each that cannot be used."""
    existing = [f for f in files if os.path.lexists(f)]  # missing ones are already reported
    with ImageMemory() as memory:
        result = inspect(existing, memory, progress=lambda i, n: progress(i, n, "checking images"))
    for fault in result.faults:
        faults.add(fault, "image")
    return result.info


def _check_allowed(parts: DataParts) -> None:
    """Raises KdepError if `allow_absent` names a class that neither boxes nor masks have."""
    known = {c for b in parts.detect.values() for c in b.categories} | set(parts.config.classes)
    if unknown := sorted(parts.config.allow_absent - known):
        raise unknown_name("class", unknown[0], known, place="`allow_absent` of the data config")


def _lay_out(parts: DataParts, data: Path) -> str:
    """Writes lists, labels and links to the images below `data`; returns the fingerprint."""
    faults, layout = Faults(), Layout(data, parts.info)
    pool = parts.pool
    # The readers of the pool skip the same files, so the folder itself can be linked.
    layout.add_folder(pool.root, pool.images, data / "pool" / "images", may_link_folder=True)
    if parts.labelled is not None:
        _write_labels(parts, data)
    for split, folders in parts.classify.items():
        names = [n for files in folders.classes.values() for n in files]
        # mmpretrain lists a linked folder itself, and could read files that are skipped here.
        may_link_folder = not folders.listing.skipped
        target = data / class_folders.FOLDER / split
        layout.add_folder(folders.folder, names, target, may_link_folder=may_link_folder)
    classes = boxes.class_names(parts.detect)
    for split, annotated in parts.detect.items():
        layout.add_images(boxes.write(split, annotated, classes, parts.info, data))
    for split, pairs in parts.segment.items():
        images, labels = masks.layout_paths(split, pairs, data, faults)
        layout.add_images(images)
        layout.add_masks(labels, pairs.hashes)
    if parts.segment:
        write_json(data / masks.FOLDER / "classes.json", parts.config.classes)
    faults.raise_any(SUBJECT)
    layout.place()
    return layout.fingerprint()


def _write_labels(parts: DataParts, data: Path) -> None:
    """Writes the class number of every pool image to pool/labels.json."""
    assert parts.labelled is not None
    classes = sorted(parts.labelled.classes)
    labels = {
        placed_name(n, parts.info[parts.labelled.folder / n]): number
        for number, name in enumerate(classes)
        for n in parts.labelled.classes[name]
    }
    text = canonical_json({"classes": classes, "labels": labels})
    write_atomic(data / "pool" / "labels.json", text)


def _task_notes(
    parts: DataParts, card: Mapping[str, Any], shared: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Notes to show with a task's scores: {folder of the data that the task reads: notes}.

    Args:
        parts: the data.
        card: its data card.
        shared: notes on images that splits share, by part of the data config.
    """
    notes: dict[str, list[str]] = {}
    if parts.classify:
        notes[class_folders.FOLDER] = class_folders.notes(card["classify"])
    if parts.detect:
        notes[boxes.FOLDER] = boxes.notes(parts.config, card["detect"])
        notes[boxes.FOLDER] += boxes.copy_notes(parts.detect, parts.config)
    if parts.segment:
        notes[masks.FOLDER] = masks.notes(parts.config, card["segment"])
        notes[masks.FOLDER] += masks.copy_notes(parts.segment, parts.config)
    # Part of the data config -> its folder in the output.
    folders = {"classify": class_folders.FOLDER, "coco": boxes.FOLDER, "masks": masks.FOLDER}
    for part, sentences in shared.items():
        notes[folders[part]] = [*notes.get(folders[part], []), *sentences]
    return {folder: sentences for folder, sentences in notes.items() if sentences}

"""Sample predictions on the page: images embedded as data: URLs, up to a total size."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdep_bench.errors import KdepError
from kdep_bench.results import text
from kdep_bench.results.records.record import Record
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.tables import Section
from kdep_bench.safe_files import read_bytes

MAX_IMAGE_BYTES = 400_000
MAX_IMAGES = 24
MAX_TOTAL_BYTES = 6_000_000
MAX_REFUSED = 50  # images that are listed as not shown

# First bytes of a file -> its media type.
_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def _inline(results_dir: Path, name: str) -> str | None:
    """The image as a data: URL; None unless it is a small PNG or JPEG inside the folder."""
    try:
        root = results_dir.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root) or path.stat().st_size > MAX_IMAGE_BYTES:
            return None
        raw = read_bytes(path, MAX_IMAGE_BYTES)
    except (OSError, ValueError, KdepError):
        return None
    kind = next((k for magic, k in _MAGIC.items() if raw.startswith(magic)), None)
    return None if kind is None else f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def _images_in_order(complete_records: Sequence[Record]) -> list[tuple[int, Record, str]]:
    """(number of the scene, record, file name) of each image; of several seeds, only of the first.

    For each task, student, method and data fraction, these are the images of the run with the
    lowest pre-training and transfer seeds. They are sorted by scene, then by task and method, so
    the methods of a scene are adjacent.
    """
    first: dict[tuple[str, str, str, float], Record] = {}
    for r in sorted(complete_records, key=lambda r: (r.seed.pretrain, r.seed.transfer, r.id)):
        if r.pictures:
            key = (r.task.name, r.student.name, r.arm.method, -r.data.share)
            first.setdefault(key, r)
    scenes = [(i, key, name) for key, r in first.items() for i, name in enumerate(r.pictures)]
    return [(i, first[key], name) for i, key, name in sorted(scenes)]


# Task family -> explanation of the images that kdep_bench/transfer/pictures.py draws.
_EXPLANATIONS = {
    "detection": "White: ground-truth boxes. Red: predicted boxes, with class and score.",
    "segmentation": "From left to right: image, ground truth, prediction.",
}


class Figure(NamedTuple):
    """An image as a data: URL, with its caption."""

    source: str
    alt: str
    caption: str
    student: str


class TaskImages(NamedTuple):
    """The images of one task; those of one scene are next to each other."""

    task: str
    explanation: str
    is_wide: bool
    scenes: list[list[Figure]]


def images_section(
    view: BoardView, results_dir: Path, complete_records: Sequence[Record]
) -> Section | None:
    """The section of sample predictions; None if the records have no images.

    It lists the images that cannot be shown.
    """
    figures: dict[tuple[str, str], dict[int, list[Figure]]] = {}
    refused, n_shown, total_bytes = [], 0, 0
    images = _images_in_order(complete_records)
    for scene, record, name in images:
        if n_shown >= MAX_IMAGES or total_bytes > MAX_TOTAL_BYTES:
            break
        source = _inline(results_dir, name)
        caption, task = _caption(view, record), record.task.name
        if source is None:
            refused.append((f"{caption}, {task}", name))
            continue
        n_shown, total_bytes = n_shown + 1, total_bytes + len(source)
        figure = Figure(
            source,
            text.plain(f"Predictions on {task}: {caption}", 240),
            text.plain(caption, 200),
            text.plain(record.student.name),
        )
        figures.setdefault((task, record.task.family), {}).setdefault(scene, []).append(figure)
    if not figures and not refused:
        return None
    tasks = [
        TaskImages(
            task, _EXPLANATIONS.get(family, ""), family == "segmentation", list(scenes.values())
        )
        for (task, family), scenes in sorted(figures.items())
    ]
    is_truncated = len(images) > n_shown + len(refused)
    return Section(
        "pictures",
        "Sample predictions",
        "pictures",
        tasks=tasks,
        limit=f"{n_shown} of {len(images)} images are shown." if is_truncated else "",
        refused=refused[:MAX_REFUSED],
    )


def _caption(view: BoardView, record: Record) -> str:
    fraction = f" at {100 * record.data.share:g} % of the data" if record.data.share < 1 else ""
    student = f"{record.student.name}, " if len(view.board.students) > 1 else ""
    seeds = f"pre-training seed {record.seed.pretrain}, transfer seed {record.seed.transfer}"
    return f"{student}{record.arm.method}{fraction}, {seeds}"

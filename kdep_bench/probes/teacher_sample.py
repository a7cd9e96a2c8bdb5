"""A teacher's features of a sample of images, without a suite."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdep_bench.data.listing import list_images
from kdep_bench.data.views import read_rgb, render
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError
from kdep_bench.features.cache_check import run_teacher
from kdep_bench.probes.teacher_features import MIN_IMAGES, spread
from kdep_bench.teachers.base import build_teacher

BATCH = 32  # images that are decoded and run at a time


class TeacherMeasures(NamedTuple):
    """The measures of one teacher.

    Attributes:
        name: the teacher's name.
        width: number of channels of its feature.
        checksum: checksum of its weights.
        values: {measure: value}, see `teacher_features.spread`.
        seconds: wall time to build the teacher, decode all images, run the teacher on them, and
            compute the measures.
    """

    name: str
    width: int
    checksum: str
    values: Mapping[str, float]
    seconds: float


def sample_files(folder: Path, count: int, seed: int) -> list[Path]:
    """At most `count` of the images below `folder`, chosen at random by `seed`, sorted.

    Raises:
        KdepError: the folder does not exist or cannot be read, or has fewer than four images.
    """
    if not folder.is_dir():
        raise KdepError(
            f"the folder {folder} (--images) does not exist"
            if not folder.exists()
            else f"{folder} (--images) is a file, not a folder",
            fix="correct --images",
        )
    images = list_images(folder).images
    if len(images) < MIN_IMAGES:
        raise KdepError(
            f"{folder} contains {len(images)} images",
            expected=f"{MIN_IMAGES} or more; about 2,000 for a ranking of teachers",
            fix="name another folder with --images",
        )
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return [folder / images[i] for i in sorted(chosen)]


def centre_square(image: np.ndarray) -> np.ndarray:
    """The box (x, y, width, height) of the largest centred square, relative to the image."""
    height, width = image.shape[:2]
    side = min(height, width)
    box = (width - side) / 2 / width, (height - side) / 2 / height, side / width, side / height
    return np.array(box, np.float32)


def measure_teacher(
    config: Mapping[str, Any],
    files: Sequence[Path],
    width: int | None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> TeacherMeasures:
    """Runs a teacher on the centre squares of images and measures its pooled feature.

    Args:
        config: a teacher config.
        files: the images.
        width: channels of the student, for the explained variance; None leaves it out.
        progress: called with (images done, images).

    Raises:
        KdepError: the teacher cannot be built, an image cannot be read, or as in `spread`.
    """
    started = time.perf_counter()
    teacher = build_teacher(config)
    checksum = teacher.checksum()
    teacher.to(compute_device())
    parts = []
    for i in range(0, len(files), BATCH):
        images = [read_rgb(file) for file in files[i : i + BATCH]]
        pixels = [render(x, centre_square(x), flip=False, px=teacher.input_px) for x in images]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        parts.append(run_teacher(teacher, batch).pooled.numpy())
        progress(min(i + BATCH, len(files)), len(files))
    try:
        values = spread(np.concatenate(parts), width)
    except KdepError as e:
        problem = f"teacher {teacher.name}: {e.problem}"
        raise KdepError(problem, expected=e.expected, fix=e.fix) from None
    seconds = time.perf_counter() - started
    return TeacherMeasures(teacher.name, teacher.width, checksum, values, seconds)

"""A second `prepare` stage of a method that makes its own images from few images of the pool.

It writes a pool as a `prepare` stage does, so that views, teacher cache and pre-training read it
like any other. It uses the teacher only to predict the classes of the few images.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from kdep_bench.data.fractions import DRAWN_BY_LABEL, labels_for_fraction, select_for_spec
from kdep_bench.data.images import read_rgb
from kdep_bench.data.listing import list_images
from kdep_bench.data.views import render
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError
from kdep_bench.features.cache_check import run_teacher
from kdep_bench.features.few_shot import FewShotImages
from kdep_bench.registry import build
from kdep_bench.teachers.base import Teacher, build_teacher

WHOLE_IMAGE = np.array([0, 0, 1, 1], np.float32)  # box of a crop that is the whole image
BATCH = 32  # images per forward pass of the teacher


def reads(spec: dict[str, Any]) -> dict[str, list]:
    """The files of the user that this stage reads: none (the `prepare` stage of the data does)."""
    return {}


def prepare(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Writes the few images and the images made from them into `out/data/pool/images`.

    Args:
        spec: `synthesis`, config of a FewShotImages; `teacher`, config of the teacher; `share`,
            `share_seed` and `share_by`, the data fraction of the few images; `seed`.
        inputs: `prepare`, the stage of the data.
        out: folder of this stage.
        progress: called with (done, total, note).

    Returns:
        counts, source, fingerprint, made ({kind: images}), forwards (images that the teacher saw),
        train_s (seconds), notes.

    Raises:
        KdepError: a teacher without class probabilities, or fewer than two images.
    """
    start = time.perf_counter()
    maker = build(spec["synthesis"])
    assert isinstance(maker, FewShotImages)
    root = inputs["prepare"] / "data" / "pool" / "images"
    files = list_images(root).images
    selected = np.sort(select_for_spec(files, spec, inputs))
    paths = [root / files[i] for i in selected]
    pixels = np.stack([render(read_rgb(p), WHOLE_IMAGE, flip=False, px=maker.px) for p in paths])
    classes = predicted_classes(build_teacher(spec["teacher"]), paths)
    mixed, generated = maker.make(pixels, classes, int(spec["seed"]), progress)
    made = {"few": pixels, "mixed": mixed, "generated": generated}
    digest = hashlib.sha256()
    for kind, images in made.items():
        folder = out / "data" / "pool" / "images" / kind
        folder.mkdir(parents=True)
        for k, image in enumerate(images):
            digest.update(image.tobytes())
            write_png(folder / f"{k:06d}.png", image)
    counts = {kind: len(images) for kind, images in made.items()}
    return {
        "counts": {"images": {"pool": sum(counts.values())}},
        "source": f"made from {len(pixels)} images of the pool",
        "fingerprint": digest.hexdigest()[:12],
        "made": counts,
        "forwards": len(pixels),
        "train_s": round(time.perf_counter() - start, 2),
        "notes": [DRAWN_BY_LABEL] if labels_for_fraction(spec, inputs) else [],
    }


def write_png(path: Path, image_HW3: np.ndarray) -> None:
    """Writes an RGB image; raises KdepError if that fails."""
    if not cv2.imwrite(str(path), np.ascontiguousarray(image_HW3[:, :, ::-1])):
        raise KdepError(
            f"the image {path} cannot be written",
            fix="free disk space, or choose another disk with --work-dir",
        )


def predicted_classes(teacher: Teacher, paths: list[Path]) -> np.ndarray:
    """[N] the most probable class of each whole image.

    Raises:
        KdepError: the teacher has no class probabilities.
    """
    teacher.to(compute_device())
    classes = []
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        images = np.stack(
            [render(read_rgb(p), WHOLE_IMAGE, flip=False, px=teacher.input_px) for p in part]
        )
        logits = run_teacher(teacher, torch.from_numpy(images).permute(0, 3, 1, 2)).logits
        if logits is None:
            raise KdepError(
                f"few-shot images need class probabilities, and the teacher {teacher.name} has "
                "none",
                fix="choose a teacher with a classifier",
            )
        classes.append(logits.argmax(1).numpy())
    return np.concatenate(classes)

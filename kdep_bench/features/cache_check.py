"""Checks that a cache matches views and teacher: some rows are computed again and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdep_bench.data.views import Views, read_rgb, render
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError, how_to_rebuild
from kdep_bench.features import int8_maps, sparse
from kdep_bench.features.cache_read import MANIFEST, SAMPLE, Cache, open_cache
from kdep_bench.files import canonical_json, read_strict, safe_name, text_hash
from kdep_bench.teachers.base import Teacher, TeacherOutput, build_teacher

# Largest relative error. The rounding error of float16 is 2**-11 (11 significant bits). The factor
# 2 allows for rounding that depends on the batch size, which may differ from the cache's.
TOLERANCE = 2.0**-10
STORED_INT8 = (int8_maps.CODES, int8_maps.SCALES)
_FIX = how_to_rebuild("of this cache stage")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disables TF32, whose 10 bits of mantissa would make features of GPU and CPU differ."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def run_teacher(teacher: Teacher, images: Tensor) -> TeacherOutput:
    """The teacher's output on the CPU for uint8 images [B, 3, px, px].

    It is computed on the device of this process in float32, without TF32.
    """
    with exact_float32():
        out = teacher(images.to(compute_device()))
    if out.pooled.device.type == "cpu":
        return out
    return TeacherOutput(
        out.pooled.cpu(),
        None if out.logits is None else out.logits.cpu(),
        {k: v.cpu() for k, v in out.maps.items()},
        None if out.tokens is None else out.tokens.cpu(),
    )


def extra_outputs(
    teacher: Teacher, out: TeacherOutput, outputs: Sequence[str]
) -> dict[str, Tensor]:
    """The requested outputs of a teacher, other than the pooled feature.

    Args:
        teacher: the teacher; its name is used in the error.
        out: the teacher's output for B images.
        outputs: "logits", "tokens", "maps" (all maps), "maps.<name>", "probabilities.<k>", or
            "int8_maps" and "int8_maps.<name>" for quantised maps.

    Returns:
        {name: [B, ...]} with the names "logits", "tokens", "maps.<name>", the names of
        `sparse.names` for probabilities, and "int8_maps.<name>" with "int8_scales.<name>".

    Raises:
        KdepError: an output that the teacher does not have.
    """
    arrays: dict[str, Tensor] = {}
    if "logits" in outputs and out.logits is not None:
        arrays["logits"] = out.logits
    if "tokens" in outputs and out.tokens is not None:
        arrays["tokens"] = out.tokens
    for name, value in out.maps.items():
        if "maps" in outputs or f"maps.{name}" in outputs:
            arrays[safe_name(f"maps.{name}", "map name")] = value
        if int8_maps.CODES in outputs or f"{int8_maps.CODES}.{name}" in outputs:
            names = [safe_name(f"{k}.{name}", "map name") for k in STORED_INT8]
            arrays |= dict(zip(names, int8_maps.quantise(value), strict=True))
    for name in outputs:
        if name.startswith(f"{sparse.VALUES}.") and out.logits is not None:
            k = int(name.partition(".")[2])
            arrays |= dict(
                zip(sparse.names(k), sparse.largest(out.logits, k, teacher.name), strict=True)
            )
    for output in outputs:
        if not any(output in (n, n.partition(".")[0]) for n in arrays):
            raise KdepError(
                f"the teacher {teacher.name} has no {output}",
                fix=f"choose another teacher, or remove the methods that read {output}",
            )
    return arrays


def render_rows(views: Views, rows: range | np.ndarray, px: int) -> torch.Tensor:
    """[len(rows), 3, px, px] uint8: the views `rows`, rendered from their source images."""
    batch = np.empty((len(rows), px, px, 3), np.uint8)
    last, image = -1, np.empty(0)
    for j, row in enumerate(rows):
        if row // views.views != last:
            last = int(row) // views.views
            image = read_rgb(views.root / views.files[last])
        batch[j] = render(image, views.box[row], bool(views.flip[row]), px)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def normalisation(teacher: Teacher) -> dict[str, list[float]]:
    """The teacher's `mean` and `std`, three numbers each, on the 0-255 scale."""
    return {"mean": teacher.mean.flatten().tolist(), "std": teacher.std.flatten().tolist()}


def recipe_hash(views: Views) -> str:
    """Hash (16 hex digits) of the crops: image list, boxes, flips and number of views per image.

    Seed, scale and ratio of the views are covered, because boxes and flips depend on them.
    """
    h = hashlib.sha256(np.ascontiguousarray(views.box).tobytes())
    h.update(np.ascontiguousarray(views.flip).tobytes())
    return text_hash(h.hexdigest() + canonical_json([views.files, views.views]), 16)


def sample_rows(rows: int, count: int = 16) -> np.ndarray:
    """At most `count` random row numbers below `rows`, sorted; always the same for equal `rows`."""
    return np.sort(np.random.default_rng(0).choice(rows, min(count, rows), False))


def verify_sample(cache: Cache, teacher: Teacher, views: Views, count: int = 16) -> float:
    """Recomputes `count` rows of a complete cache from the source images.

    Returns the result of `verify_images`, and raises its errors; also raises KdepError for another
    number of rows or another teacher.
    """
    if len(cache) != views.rows:
        raise KdepError(
            f"the cache has {len(cache)} rows",
            expected=f"{views.rows}, one per view",
            fix=_FIX,
        )
    check_same_teacher(cache, teacher)
    rows = sample_rows(views.rows, count)
    return verify_images(cache, teacher, rows, render_rows(views, rows, teacher.input_px))


def check_same_teacher(cache: Cache, teacher: Teacher) -> None:
    """Raises KdepError unless the cache was computed by a teacher with the same checksum."""
    if cache.teacher["checksum"] != teacher.checksum():
        raise KdepError(
            f"the cache was made by teacher {cache.teacher['name']} "
            f"({cache.teacher['checksum']}), not by {teacher.name} ({teacher.checksum()})",
            fix=_FIX,
        )


def verify_images(cache: Cache, teacher: Teacher, rows: np.ndarray, pixels: Tensor) -> float:
    """Computes rows with the live teacher and compares them with the cache.

    Args:
        cache: the opened cache.
        teacher: the live teacher, on its device.
        rows: [n] row numbers.
        pixels: [n, 3, px, px] uint8, the views of these rows.

    Returns:
        the largest error; the error of an output is divided by the output's largest magnitude.

    Raises:
        KdepError: an error above the rounding of the stored type. The teacher, the views, the
            normalisation or the resolution are then not those of the cache.
    """
    output, largest_error = run_teacher(teacher, pixels), 0.0
    outputs = [n for n in sorted(cache.extras) if not n.startswith(f"{sparse.CLASSES}.")]
    compared = extra_outputs(teacher, output, outputs)
    for name, live in {"features": output.pooled, **compared}.items():
        if name.startswith(f"{sparse.CLASSES}.") or (name == "features" and not cache.shards):
            continue
        stored = torch.from_numpy(cache.rows(rows, None if name == "features" else name)).float()
        scale = max(float(live.abs().max()), 1e-6)
        if name.startswith(f"{sparse.VALUES}."):
            assert output.logits is not None
            index = sparse.names(int(name.partition(".")[2]))[1]
            classes = torch.from_numpy(cache.rows(rows, index))
            error = sparse.stored_error(output.logits, stored, classes) / scale
        else:
            error = float((live - stored).abs().max()) / scale
        limit = TOLERANCE
        if isinstance(next(iter(cache.extras.get(name, [])), None), int8_maps.Int8Shard):
            limit = int8_maps.TOLERANCE
        if not error <= limit:
            raise KdepError(
                f"cached {name} differ from the live teacher by {error:.2g} of their scale",
                expected=f"at most {limit:.2g}, the rounding error of the stored numbers",
                fix=f"{_FIX} (the views, the normalisation or the resolution have changed)",
            )
        largest_error = max(largest_error, error)
    return largest_error


def load_teacher_config(folder: Path) -> dict[str, Any] | None:
    """The config of the teacher that computed a cache; None if the cache does not record it.

    Files of a teacher that a method of the suite trained are stored relative to the cache's folder,
    and returned as absolute paths.
    """
    manifest = read_strict(folder / MANIFEST)
    config = manifest.get("config")
    if config is None and (folder / "stage.json").exists():  # a manifest of an older version
        config = read_strict(folder / "stage.json")["spec"]["teacher"]
    files = {k: str((folder / path).resolve()) for k, path in manifest.get("files", {}).items()}
    return config if config is None else {**config, **files}


def verify_cache(folder: Path, views: Views, count: int = 8) -> dict[str, Any]:
    """Checks before a training run that a cache matches the views and the current teacher.

    Compares the fields of the manifest (rows, crops, resolution, normalisation, checksum), and runs
    the teacher on `count` images of the stored sample to compare its outputs.

    Returns:
        {"rows": number of rows computed again, "error": largest relative error}. For a cache of an
        older version without a sample, rows is 0 and error is None.

    Raises:
        KdepError: a cache of other views or of another teacher, or a teacher whose weights are
            missing.
    """
    manifest, cache = read_strict(folder / MANIFEST), open_cache(folder)
    computed_for = manifest.get("of", len(cache))  # the rows of all views, also of a data fraction
    if computed_for != views.rows:
        raise KdepError(
            f"the cache {folder} was computed for {computed_for} views",
            expected=f"{views.rows}, the number of these views",
            fix=how_to_rebuild(folder),
        )
    if manifest.get("recipe", recipe_hash(views)) != recipe_hash(views):
        raise KdepError(
            f"the cache {folder} was computed from different crops than these views",
            expected="the same image list, view seed, scale and ratio",
            fix=how_to_rebuild(folder),
        )
    config = load_teacher_config(folder)
    if config is None or not (folder / SAMPLE).exists():
        return {"rows": 0, "error": None}
    teacher = build_teacher(config)
    check_same_teacher(cache, teacher)
    for field, current in (("px", teacher.input_px), ("normalisation", normalisation(teacher))):
        if manifest[field] != current:
            raise KdepError(
                f"the cache {folder} was computed with {field} {manifest[field]}",
                expected=f"{current}, the current value of teacher {teacher.name}",
                fix=how_to_rebuild(folder),
            )
    with np.load(folder / SAMPLE) as sample:
        rows, pixels = sample["rows"][:count], torch.from_numpy(sample["pixels"][:count])
    error = verify_images(cache, teacher.to(compute_device()), rows, pixels)
    return {"rows": len(rows), "error": error}


def open_head(folder: Path) -> nn.Module:
    """The teacher's classifier, which computes its logits from the cached pooled feature.

    Returns:
        a frozen module: pooled feature [B, D] -> [B, classes].

    Raises:
        KdepError: the teacher has no such classifier or did not compute this cache, or the
            classifier does not reproduce the teacher's logits on the stored sample.
    """
    config, cache = load_teacher_config(folder), open_cache(folder)
    teacher = None if config is None else build_teacher(config)
    if teacher is None or teacher.logit_head is None:
        raise KdepError(
            f"the cache of teacher {cache.teacher['name']} has no logits, and they cannot be "
            "computed from its pooled feature",
            fix="add 'logits' to the method's `needs`",
        )
    check_same_teacher(cache, teacher)
    if (folder / SAMPLE).exists():
        with np.load(folder / SAMPLE) as sample:
            rows, pixels = sample["rows"][:8], torch.from_numpy(sample["pixels"][:8])
        logits = teacher(pixels).logits
        with torch.no_grad():
            from_cache = teacher.logit_head(torch.from_numpy(cache.rows(rows)).float())
        # Allows for the float16 rounding of Dt channels; the relative error of a wrong head is
        # about 1.
        limit = 0.0 if logits is None else 2.0**-6 * float(logits.abs().max())
        if logits is None or float((from_cache - logits).abs().max()) > limit:
            raise KdepError(
                f"the classifier of {teacher.name} does not reproduce its logits from the cached "
                "feature",
                expected="logits = logit_head(pooled)",
                fix="correct `logit_head` of that teacher class",
            )
    return teacher.logit_head.requires_grad_(False)

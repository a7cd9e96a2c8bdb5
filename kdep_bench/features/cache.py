"""Stage `cache`: runs the teacher once per (image, view), for all methods, students and seeds.

An (image, view) pair is a row of the cache, with the number image * views + view. The folder
contains the pooled features as float16 in memory-mapped shards, shards of every extra output that a
method reads (logits, maps, tokens, largest class probabilities; maps as float16 or int8), and a
manifest, which is written last. When the cache is complete, the teacher computes a sample of its
rows again, and the results are compared. The images of that sample are stored, so that the
comparison can be repeated before every use (`verify_cache`). A mismatch raises KdepError.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from kdep_bench.data.fractions import select_for_spec
from kdep_bench.data.views import Views, open_views, read_rgb, render
from kdep_bench.devices import compute_device, cores
from kdep_bench.errors import KdepError
from kdep_bench.features import sparse
from kdep_bench.features.cache_check import (
    extra_outputs,
    normalisation,
    recipe_hash,
    render_rows,
    run_teacher,
    sample_rows,
    verify_images,
)
from kdep_bench.features.cache_read import (
    INDEX,
    MANIFEST,
    SAMPLE,
    SHARD_ROWS,
    bytes_of_view,
    dtype_of,
    note_path,
    open_cache,
    shard_path,
)
from kdep_bench.features.cache_reuse import link_shards
from kdep_bench.files import file_hash, read_strict, write_json
from kdep_bench.flops import forward_flops
from kdep_bench.prefetch import prefetch
from kdep_bench.teachers.base import Teacher, build_teacher


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Computes the cache; finished shards of an interrupted run are reused.

    Args:
        spec: `teacher`, its config; `batch`, rows per forward pass; `outputs`, in addition to the
            pooled feature: words of OUTPUTS, "maps.<name>", "int8_maps.<name>" for quantised maps,
            or "probabilities.<k>" for the k largest class probabilities; `pooled`, False if no
            method reads the pooled feature; `share` and `share_seed`, if only the rows of a data
            fraction are stored.
        inputs: folders `views` and `prepare`; for a teacher that another method of the suite
            trained, also `export` and `pretrain` of that method.
        out: folder of the cache.
        progress: called with (rows done, rows, note).

    Returns:
        teacher (name, checksum, width, flops per image), rows, bytes, bytes_per_view, forwards
        (images computed), fill_s (seconds), images_per_s, known_images (see `known_images`);
        reused, if arrays were linked: the folder of the cache that computed them; forwards and
        fill_s are then the cost of that cache, which sums over caches count once.

    Raises:
        KdepError: the weights change, features are not finite, a second computation gives other
            features, or the teacher fails on known images.
    """
    files = exported_files(spec, inputs)
    teacher = build_teacher({**spec["teacher"], **{k: str(path) for k, path in files.items()}})
    checksum, outputs = teacher.checksum(), list(spec.get("outputs", []))
    teacher.to(compute_device())
    # The known images have ImageNet classes. A teacher that this suite trained is identified by the
    # hash of its files instead.
    check = None if files else known_images(teacher, inputs["prepare"] / "data" / "known")
    views = open_views(inputs["views"], inputs["prepare"])
    index = stored_rows(spec, inputs, views)
    delete_foreign_shards(out, _identity(spec, teacher, checksum, views, all_rows=index is None))
    order = np.arange(views.rows) if index is None else index
    shapes, classes = _extra_shapes(teacher, views, outputs)
    stored_width = teacher.width if spec.get("pooled", True) else 0
    view_bytes = bytes_of_view(stored_width, shapes)
    cost = estimate(len(order), view_bytes, views.views)
    print(f"cache of teacher {teacher.name}: {cost}", flush=True)
    progress(0, len(order), cost)
    manifest = _manifest(spec, teacher, checksum, views, len(order), shapes)
    reused = link_shards(
        out,
        spec,
        inputs,
        manifest,
        index,
        lambda folder: _is_current(folder, teacher, views, order),
    )
    if reused is not None:
        print(f"the arrays are linked from {reused}, which contains them", flush=True)
    forwards, seconds = _fill(spec, order, teacher, views, shapes, out, progress)
    _check_frozen(teacher, checksum)
    if files:  # relative to this folder, so that the work dir can be moved
        manifest["files"] = {k: os.path.relpath(path, out) for k, path in files.items()}
    if sparse.stored_top(shapes) and classes is not None:
        manifest["classes"] = classes
    if index is not None:
        manifest["of"] = views.rows  # number of rows of all views
        np.save(out / INDEX, index)
    write_json(out / MANIFEST, manifest)
    image = _verify_sample(out, teacher, views, order)
    return {
        "teacher": manifest["teacher"] | {"flops": forward_flops(teacher, image)},
        "rows": len(order),
        "bytes": len(order) * view_bytes,
        "bytes_per_view": view_bytes,
        "forwards": forwards,
        "fill_s": round(seconds, 2),
        "images_per_s": round(forwards / seconds, 1),
        "known_images": check,
        **({} if reused is None else {"reused": reused}),
    }


def _identity(
    spec: Mapping[str, Any], teacher: Teacher, checksum: str, views: Views, all_rows: bool
) -> dict[str, Any]:
    """Values that must be unchanged for the shards of an interrupted run to be reused."""
    identity = {"teacher": checksum, "px": teacher.input_px, "rows": views.rows}
    identity |= normalisation(teacher)
    if not all_rows:
        identity["part"] = [spec["share"], spec["share_seed"], spec.get("share_by")]
    if spec.get("outputs"):
        identity["outputs"] = list(spec["outputs"])
    return identity


def _is_current(folder: Path, teacher: Teacher, views: Views, order: np.ndarray) -> bool:
    """Whether the teacher still computes what a finished cache contains; see `verify_images`.

    Args:
        folder: folder of the finished cache.
        teacher: the teacher, on its device.
        views: the views of the cache.
        order: row numbers that the cache stores.
    """
    rows = order[sample_rows(len(order))]
    try:
        verify_images(open_cache(folder), teacher, rows, render_rows(views, rows, teacher.input_px))
    except KdepError as e:
        print(f"the arrays of {folder.name} are not used: {e.problem}", flush=True)
        return False
    return True


def _extra_shapes(
    teacher: Teacher, views: Views, outputs: Sequence[str]
) -> tuple[dict[str, list[int]], int | None]:
    """(shape of each extra output without the batch, classes of the logits), from one view."""
    if not outputs:
        return {}, None
    first = run_teacher(teacher, render_rows(views, range(1), teacher.input_px))
    values = extra_outputs(teacher, first, outputs)
    classes = None if first.logits is None else first.logits.shape[1]
    return {name: list(value.shape[1:]) for name, value in values.items()}, classes


def _check_frozen(teacher: Teacher, checksum: str) -> None:
    """Raises KdepError if the teacher's weights have changed; moves the teacher to the CPU."""
    if teacher.cpu().checksum() != checksum:
        raise KdepError(
            f"the weights of teacher {teacher.name} changed while the cache was computed; they "
            "must stay frozen",
            fix="correct the teacher's class, so that forward() changes no parameter or buffer",
        )


def _fill(
    spec: Mapping[str, Any],
    order: np.ndarray,
    teacher: Teacher,
    views: Views,
    shapes: Mapping[str, Sequence[int]],
    out: Path,
    progress: Callable[..., None],
) -> tuple[int, float]:
    """Computes the missing shards; returns (forward passes, seconds) of all shards."""
    pooled, shards = spec.get("pooled", True), math.ceil(len(order) / SHARD_ROWS)
    batch, outputs = int(spec.get("batch", 32)), list(spec.get("outputs", []))
    for k in range(shards):
        if not is_complete(out, k, shapes, pooled):
            fill_shard(k, order, teacher, views, batch, outputs, shapes, out, progress, pooled)
    spent = [read_strict(note_path(out, k)) for k in range(shards)]
    return sum(s["forwards"] for s in spent), sum(s["seconds"] for s in spent)


def _manifest(
    spec: Mapping[str, Any],
    teacher: Teacher,
    checksum: str,
    views: Views,
    rows: int,
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """The content of the manifest that every cache has."""
    manifest: dict[str, Any] = {
        "teacher": {"name": teacher.name, "checksum": checksum, "width": teacher.width},
        "rows": rows,
        "shards": math.ceil(rows / SHARD_ROWS),
        "precision": "float16",
        "px": teacher.input_px,
        "outputs": shapes,
        "config": spec["teacher"],
        "normalisation": normalisation(teacher),
        "recipe": recipe_hash(views),
    }
    if not spec.get("pooled", True):
        manifest["pooled"] = False
    if isinstance(getattr(teacher, "source", None), str):
        manifest["teacher"]["export"] = teacher.source
    return manifest


def _verify_sample(out: Path, teacher: Teacher, views: Views, order: np.ndarray) -> torch.Tensor:
    """Compares a sample of the cache with the teacher, and stores the sample's images.

    Returns one of these images, [1, 3, px, px] uint8 on the device.
    """
    teacher.to(compute_device())
    rows = order[sample_rows(len(order))]
    pixels = render_rows(views, rows, teacher.input_px)
    verify_images(open_cache(out), teacher, rows, pixels)
    np.savez(out / SAMPLE, rows=rows, pixels=pixels.numpy())
    return pixels[:1].to(compute_device())


def estimate(rows: int, view_bytes: int, views: int) -> str:
    """A message with the cost of a cache, and the epochs above which it is the cheaper choice.

    A live teacher is run for every sample of every training run, a cached teacher once per view of
    an image. So the cache is cheaper if all runs that read it have more than `views` epochs in
    total.

    Args:
        rows: number of (image, view) pairs.
        view_bytes: bytes stored per row, of all outputs.
        views: views per image.
    """
    break_even = f"{views} epochs" if views > 1 else "one epoch"
    return (
        f"{rows * view_bytes / 1e6:.4g} MB on disk ({view_bytes} bytes per view) and {rows} "
        "forward passes of the teacher; cheaper than a live teacher if the runs that share it "
        f"train for more than {break_even} in total"
    )


def exported_files(spec: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Path]:
    """{constructor argument: file} of a teacher that a method of the suite trained, else {}."""
    if "export" not in inputs:
        return {}
    files = {"backbone": inputs["export"] / "backbone.pth"}
    if spec["teacher"]["has_logits"]:
        files["checkpoint"] = inputs["pretrain"] / "student.pth"
    return files


def stored_rows(
    spec: Mapping[str, Any], inputs: Mapping[str, Path], views: Views
) -> np.ndarray | None:
    """Sorted row numbers of the data fraction that the cache stores; None for all rows."""
    if "share" not in spec:
        return None
    images = np.sort(select_for_spec(views.files, spec, inputs))
    return (images[:, None] * views.views + np.arange(views.views)).ravel()


def fill_shard(
    k: int,
    order: np.ndarray,
    teacher: Teacher,
    views: Views,
    batch: int,
    outputs: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    out: Path,
    progress: Callable[..., None],
    pooled: bool = True,
) -> None:
    """Computes shard `k` of every output and writes its files.

    Args:
        k: number of the shard, which has SHARD_ROWS rows of `order` from k * SHARD_ROWS on.
        order: row numbers that the cache stores.
        teacher: the teacher, on its device.
        views: the views to compute.
        batch: rows per forward pass.
        outputs: names of the extra outputs (other than the pooled feature).
        shapes: shape of each extra output, without the batch.
        out: folder of the cache.
        progress: called with (rows done, rows, note).
        pooled: whether to store the pooled feature.
    """
    first = k * SHARD_ROWS
    count, start = min(SHARD_ROWS, len(order) - first), time.perf_counter()
    shard = np.empty((count, teacher.width if pooled else 0), np.float16)
    partials = {name: out / f".{name}-{k}.npy" for name in shapes}
    extras = {
        name: open_memmap(partials[name], "w+", dtype_of(name), (count, *shape))
        for name, shape in shapes.items()
    }

    def rows_at(i: int) -> np.ndarray:
        return order[first + i : first + min(i + batch, count)]

    def images_at(i: int) -> torch.Tensor:
        return render_rows(views, rows_at(i), teacher.input_px)

    starts = range(0, count, batch)
    # Threads decode images while a GPU computes; on a CPU the teacher itself uses all cores.
    threads = 0 if compute_device().type == "cpu" else cores()
    for i, pixels in zip(starts, prefetch(images_at, starts, threads), strict=True):
        rows, output = rows_at(i), run_teacher(teacher, pixels)
        values = extra_outputs(teacher, output, outputs)
        if pooled:
            values["features"] = output.pooled
        for name, array in _as_stored(values, teacher.name, views, rows).items():
            target = shard if name == "features" else extras[name]
            target[i : i + len(rows)] = array
        progress(first + i + len(rows), len(order), f"{teacher.name} features")
    for array in extras.values():
        array.flush()
    spent = {"seconds": time.perf_counter() - start, "forwards": count}
    _finish_shard(out, k, shard if pooled else None, partials, spent)


def _as_stored(
    values: Mapping[str, torch.Tensor], teacher: str, views: Views, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs of a batch as arrays of the data types in which they are stored.

    Raises:
        KdepError: NaN, infinity or a value that is too large for float16.
    """
    arrays = {}
    for name, value in values.items():
        with np.errstate(over="ignore"):  # reported below
            array = value.numpy().astype(dtype_of(name))
        if not np.isfinite(array).all():
            raise KdepError(
                f"teacher {teacher} returned NaN, infinity or a value beyond float16 "
                f"({name}) for {views.files[rows[0] // views.views]} or one of the next "
                f"{len(rows)} views",
                fix="check the teacher's weights and normalisation",
            )
        arrays[name] = array
    return arrays


def _finish_shard(
    out: Path,
    k: int,
    pooled: np.ndarray | None,
    extras: Mapping[str, Path],
    spent: dict[str, Any],
) -> None:
    """Moves the files of shard k into place, and writes its note, a JSON file.

    The note has the shard's hashes and its cost, so that a resumed stage can report the cost of all
    shards. The file of pooled features, if there is one, appears last.

    Args:
        out: folder of the cache.
        k: number of the shard.
        pooled: the pooled features, if they are stored.
        extras: temporary file of each extra output.
        spent: cost of the shard, seconds and forwards.
    """
    for name, file in extras.items():
        file.replace(shard_path(out, k, name))
    partial = out / f".shard-{k}.npy"
    if pooled is not None:
        np.save(partial, pooled)
        spent["sha256"] = file_hash(partial)
    if extra_hashes := {name: file_hash(shard_path(out, k, name)) for name in extras}:
        spent["further"] = extra_hashes
    write_json(note_path(out, k), spent)
    if pooled is not None:
        partial.replace(shard_path(out, k))


def delete_foreign_shards(out: Path, identity: dict[str, Any]) -> None:
    """Deletes the shards of an interrupted run, unless it had the same `identity`."""
    path = out / "identity.json"
    if not (path.exists() and read_strict(path) == identity):
        for shard in out.glob("*.npy"):
            shard.unlink()
    write_json(path, identity)


def is_complete(out: Path, k: int, names: Iterable[str] = (), pooled: bool = True) -> bool:
    """Whether shard `k` exists for every output in `names`, with the hashes in its note."""
    try:
        note = read_strict(note_path(out, k))
        hashes = {name: note["further"][name] for name in names}
        if pooled:
            hashes["features"] = note["sha256"]
        paths = {name: shard_path(out, k, name) for name in hashes}
        return all(path.exists() and file_hash(path) == hashes[n] for n, path in paths.items())
    except (KdepError, KeyError, TypeError):
        return False


def known_images(teacher: Teacher, folder: Path) -> dict[str, Any] | None:
    """Number of photographs that the teacher classifies correctly: {"right": n, "of": N}.

    `folder/known.json` maps the file name of each photograph to its ImageNet-1k class number. None
    if there is no such file or the teacher has no logits.

    Raises:
        KdepError: fewer than 60 % are classified correctly, which indicates wrong weights or a
            wrong normalisation.
    """
    if not teacher.has_logits or not (folder / "known.json").exists():
        return None
    known: dict[str, int] = read_strict(folder / "known.json")
    px = teacher.input_px
    full_image = np.array([0, 0, 1, 1], np.float32)  # box of the crop, relative to the image
    images = np.stack([render(read_rgb(folder / f), full_image, flip=False, px=px) for f in known])
    logits = run_teacher(teacher, torch.from_numpy(images).permute(0, 3, 1, 2)).logits
    assert logits is not None
    hits = int((logits.argmax(1) == torch.tensor(list(known.values()))).sum())
    if hits < 0.6 * len(known):
        raise KdepError(
            f"teacher {teacher.name} classifies only {hits} of {len(known)} test photographs "
            "correctly",
            expected="at least 60 %",
            fix="check its weights file, channel order and normalisation",
        )
    return {"right": hits, "of": len(known)}

"""Measurements on the teacher's features before training, and the extra cost of a method.

The alignment samples are all views of the images of the data fraction: those to which an alignment
is fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench import openmmlab
from kdep_bench.data.fractions import select_for_spec
from kdep_bench.data.views import open_views
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError
from kdep_bench.features.align import READ_ROWS, finite_or_none, row_numbers
from kdep_bench.features.cache_read import open_cache
from kdep_bench.features.layers import evenly_spaced, layer_distances
from kdep_bench.features.map_moments import cached_maps, live_maps, save_map_moments
from kdep_bench.features.target import build_target
from kdep_bench.features.transform import Moments, std_ratio
from kdep_bench.objectives.base import Demands
from kdep_bench.objectives.levels import level_pairs, levels_of
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.pretrain.teaching import TeacherSource
from kdep_bench.teachers.base import build_teacher

CACHE_FIX = "remove teacher_source='live' from the method, or budget.teacher='live' from the suite"


def extra_cost(
    state: dict[str, Any],
    required: Demands,
    teacher_source: TeacherSource,
    seen: int,
    copies: int = 1,
) -> dict[str, Any]:
    """Parameters and forward passes of a method in addition to those of its student.

    Args:
        state: state dict of the trained model.
        required: what the method's objective needs.
        teacher_source: where the teacher outputs of the run come from.
        seen: number of samples of the run.
        copies: images that the method's augmentation makes of a sample.

    Returns:
        `extra_parameters`: number of values that are trained or stored with the backbone and
        dropped at export. `extra_forwards`: number of forward passes of all other networks (live
        teachers, peers, moving averages) and of the student beyond one per sample. The cache stage
        counts the forward passes of a cached teacher.
    """
    dropped = ("objective.", "augment.")
    parameters = sum(v.numel() for k, v in state.items() if k.startswith(dropped))
    forwards = (copies * (1 + required.forwards + teacher_source.n_live) - 1) * seen
    return {"extra_parameters": parameters, "extra_forwards": round(forwards)}


def target_statistics(
    spec: dict[str, Any], inputs: dict[str, Path], target: dict[str, Any]
) -> dict[str, Any]:
    """{"target_mean_square", "std_ratio_after_transform"} of the target, on alignment samples.

    `target`: arguments of `build_target`. The std ratio is None if it is infinite.
    """
    head, moments = build_target(**target), Moments(spec["student"]["width"])

    def transform_and_add(f: Tensor) -> Tensor:
        g = head(f)
        moments.add(g)
        return g

    return {
        "target_mean_square": mean_square(transform_and_add, spec, inputs),
        "std_ratio_after_transform": finite_or_none(std_ratio(moments.std)),
    }


def write_map_moments(spec: dict[str, Any], inputs: dict[str, Path], out: Path) -> str:
    """Saves mean and covariance of the teacher maps in the objective's `levels`.

    For every pair of student level and teacher map there are two files: one for the teacher's map
    resized to the side of the level, and one for its global mean (side 1). The maps are read from
    the cache; a run without a cache computes them with its live teacher. Each rank writes a
    separate folder with the same content, so that no rank reads a file that another is writing.

    Returns:
        the folder that this rank wrote.
    """
    student = describe(spec["student"])
    requested = {
        (teacher_map, side)
        for level, teacher_map in level_pairs(spec["method"]["objective"])
        if level in student
        for side in (student[level]["side"], 1)
    }
    if "cache" in inputs:
        views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
        available = {name.partition(".")[2] for name in cache.extras}
        read = cached_maps(cache, available & {name for name, _ in requested})
    else:
        views = open_views(inputs["views"], inputs["images"])
        teacher = build_teacher(spec["teacher"]).to(compute_device())
        available = set(teacher.map_names)
        read = live_maps(teacher, views, available & {name for name, _ in requested})
    rows = row_numbers(select_for_spec(views.files, spec, inputs), views.views)
    maps_and_sides = {(name, side) for name, side in requested if name in available}
    folder = out / "map_moments" / str(openmmlab.planned_rank())
    save_map_moments(read, rows, maps_and_sides, folder)
    return str(folder)


def distances(spec: dict[str, Any], inputs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """{map: {map: 1 - CKA}} of the teacher maps in the objective's `levels`.

    Computed over at most 10,000 of the alignment samples; see `features/layers.py`.

    Raises:
        KdepError: there is no teacher cache.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the method {spec['method']['name']} compares layers of the teacher before training, "
            "which needs cached teacher features",
            fix=CACHE_FIX,
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    rows = row_numbers(select_for_spec(views.files, spec, inputs), views.views)
    return layer_distances(cache, rows, sorted(levels_of(spec["method"]["objective"])))


def mean_variance(spec: dict[str, Any], inputs: dict[str, Path]) -> float:
    """Mean over channels of the variance of the teacher's feature over the alignment samples."""
    sums: list[Tensor] = []
    counts: list[int] = []

    def add_to_mean(f: Tensor) -> Tensor:
        sums.append(f.double().sum(0))
        counts.append(len(f))
        return f

    square = mean_square(add_to_mean, spec, inputs)
    mean = torch.stack(sums).sum(0) / sum(counts)
    return square - float(mean.square().mean())


def mean_square(
    transform: Callable[[Tensor], Tensor],
    spec: dict[str, Any],
    inputs: dict[str, Path],
    max_rows: int = 65536,
) -> float:
    """Mean square of the transformed teacher feature, over channels and alignment samples.

    Args:
        transform: maps the teacher's features [B, Dt] to targets [B, D].
        spec: spec of the pre-training stage.
        inputs: inputs of that stage; "cache" and "views" are read.
        max_rows: maximum number of samples to read, evenly spaced. With 65,536, the standard error
            is negligible for a loss weight.

    Raises:
        KdepError: there is no teacher cache.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the loss weight of method {spec['method']['name']} depends on the mean square of "
            "the teacher's feature, which is not known before training if the teacher is live and "
            "the method has no alignment",
            fix=CACHE_FIX,
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    images = select_for_spec(views.files, spec, inputs)
    rows, total = evenly_spaced(row_numbers(images, views.views), max_rows), 0.0
    for start in range(0, len(rows), READ_ROWS):
        f = torch.from_numpy(cache.rows(rows[start : start + READ_ROWS])).float()
        total += float(transform(f).double().square().mean(1).sum())
    return total / len(rows)

"""Diagnostics of a pre-training run: its target, its distances, its extra cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench import openmmlab
from kdep_bench.data.fractions import select_for_spec
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features.align import finite, rows_of
from kdep_bench.features.cache_read import open_cache
from kdep_bench.features.layers import evenly_spaced, layer_distances
from kdep_bench.features.map_moments import save_map_moments
from kdep_bench.features.target import build_target
from kdep_bench.features.transform import Moments, std_ratio
from kdep_bench.objectives.base import Demands
from kdep_bench.objectives.levels import level_pairs, levels_of
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.pretrain.teaching import Teaching


def extra_cost(
    state: dict[str, Any],
    required: Demands,
    taught: Teaching,
    seen: int,
) -> dict[str, Any]:
    """Parameters and forward passes that a method needs in addition to its student's.

    `extra_parameters`: number of values that are trained or stored with the backbone and dropped at
    export. `extra_forwards`: forward passes of all other networks (a live teacher, a peer, a moving
    average) over the `seen` samples of the run; those of a cached teacher are counted by its cache.
    """
    dropped = ("objective.", "augment.")
    parameters = sum(v.numel() for k, v in state.items() if k.startswith(dropped))
    forwards = (required.forwards + taught.live) * seen
    return {"extra_parameters": parameters, "extra_forwards": forwards}


def target_probes(
    spec: dict[str, Any], inputs: dict[str, Path], target: dict[str, Any]
) -> dict[str, Any]:
    """Mean square and std ratio of the target over the alignment samples."""
    head, moments = build_target(**target), Moments(spec["student"]["width"])

    def transform_and_add(f: Tensor) -> Tensor:
        g = head(f)
        moments.add(g)
        return g

    return {
        "target_mean_square": mean_square(transform_and_add, spec, inputs),
        "std_ratio_after_transform": finite(std_ratio(moments.std)),
    }


def moments_of_maps(spec: dict[str, Any], inputs: dict[str, Path], out: Path) -> str:
    """Fits the moments of the maps that the objective names, over places; their folder.

    At the sides of the student's levels and at side 1. Each rank writes a folder of its own, so
    that none reads what another is writing; the rows and so the moments are the same.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the method {spec['method']['name']} computes a basis of the teacher's maps before "
            "training, which needs cached teacher features",
            fix="remove budget.teacher='live' from the suite",
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    rows = rows_of(select_for_spec(views.files, spec, inputs), views.views)
    student, required = describe(spec["student"]), set[tuple[str, int]]()
    for own, its in level_pairs(spec["method"]["objective"]):
        if own in student and f"maps.{its}" in cache.extras:
            required |= {(its, student[own]["side"]), (its, 1)}
    folder = out / "map_moments" / str(openmmlab.planned_rank())
    save_map_moments(cache, rows, required, folder)
    return str(folder)


def distances(spec: dict[str, Any], inputs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Distances between the teacher maps that the objective names, over the alignment samples.

    Returns:
        level -> level -> distance, see `features/layers.py`.

    Raises:
        KdepError: no cached teacher features.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the method {spec['method']['name']} compares layers of the teacher before training, "
            "which needs cached teacher features",
            fix="remove budget.teacher='live' from the suite",
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    rows = rows_of(select_for_spec(views.files, spec, inputs), views.views)
    return layer_distances(cache, rows, sorted(levels_of(spec["method"]["objective"])))


def mean_variance(spec: dict[str, Any], inputs: dict[str, Path]) -> float:
    """Mean variance of the channels of the teacher's feature, over the alignment samples."""
    sums: list[Tensor] = []

    def add(f: Tensor) -> Tensor:
        sums.append(f.double().sum(0))
        counts.append(len(f))
        return f

    counts: list[int] = []
    square = mean_square(add, spec, inputs)
    mean = torch.stack(sums).sum(0) / sum(counts)
    return square - float(mean.square().mean())


def mean_square(
    of: Callable[[Tensor], Tensor], spec: dict[str, Any], inputs: dict[str, Path], most: int = 65536
) -> float:
    """Mean square of a function of the teacher's feature, over channels and alignment samples.

    Of at most `most` rows: the standard error is then far below what a loss weight can feel.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the loss weight of method {spec['method']['name']} depends on the mean square of "
            "the teacher's feature, which is unknown before training with a live teacher and no "
            "alignment",
            fix="remove budget.teacher='live' from the suite",
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    images = select_for_spec(views.files, spec, inputs)
    rows, total = evenly_spaced(rows_of(images, views.views), most), 0.0
    for start in range(0, len(rows), 4096):
        f = torch.from_numpy(cache.rows(rows[start : start + 4096])).float()
        total += float(of(f).double().square().mean(1).sum())
    return total / len(rows)

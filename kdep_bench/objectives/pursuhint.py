"""PURSUhInT: hints at layers that represent clusters of similar teacher layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.hints import Hints
from kdep_bench.objectives.maps import Maps, check_levels

DUPLICATE = 1e-9  # distance (1 - CKA) up to which two layers count as duplicates


def hint_points(
    distances: Sequence[Sequence[float]], count: int, fixed: int | None = None
) -> list[int]:
    """Indices, in ascending order, of the layers that are the centres of `count` clusters.

    k-medoids, deterministic. The initial centres are spread evenly over the depth. In each step,
    one centre is exchanged for another layer: the exchange that lowers the sum of squared distances
    to the nearest centre most. The search ends when no exchange lowers this sum.

    Args:
        distances: [L, L] distances between layers.
        count: number of clusters; fewer are returned if layers are duplicates.
        fixed: index of a layer that is always a centre.
    """
    layers = range(len(distances))

    def cost(centres: Sequence[int]) -> float:
        return sum(min(distances[i][c] for c in centres) ** 2 for i in layers)

    last = len(distances) - 1
    if count == 1:
        centres = [round(last * 0.5)]
    else:
        centres = sorted({round(last * k / (count - 1)) for k in range(count)})
    if fixed is not None and fixed not in centres:
        centres = sorted({*centres[:-1], fixed})
    while True:
        swaps = [
            sorted({*centres} - {old} | {new})
            for old, new in product(centres, layers)
            if new not in centres and old != fixed
        ]
        better = min(swaps, key=lambda c: (cost(c), c), default=centres)
        if not cost(better) < cost(centres) - DUPLICATE**2:
            break
        centres = better
    hints: list[int] = [] if fixed is None else [fixed]
    for c in centres:
        if all(distances[c][k] > DUPLICATE for k in hints):
            hints.append(c)
    return sorted(hints)


def hint_levels(
    levels: Mapping[str, str],
    teacher_maps: Maps,
    layer_distances: Mapping[str, Mapping[str, float]],
    points: int,
) -> dict[str, str]:
    """The entries of `levels` whose teacher maps are the centres of `points` clusters.

    The deepest map is always a centre.

    Args:
        levels: {student level: teacher map}, the candidates.
        teacher_maps: the teacher's maps.
        layer_distances: {teacher map: {teacher map: distance}}.
        points: number of clusters.

    Raises:
        KdepError: more points than candidates, or none.
    """
    if not 1 <= points <= len(levels):
        raise KdepError(
            f"the number of hint points is {points}, with {len(levels)} levels",
            expected="at least 1, and at most the number of candidate levels",
            fix="correct `points` in the method's objective, or add entries to `levels`",
        )
    by_depth = sorted(levels, key=lambda level: (teacher_maps[levels[level]]["stride"], level))
    distances = [[layer_distances[levels[a]][levels[b]] for b in by_depth] for a in by_depth]
    centres = hint_points(distances, points, fixed=len(by_depth) - 1)
    return {by_depth[i]: levels[by_depth[i]] for i in centres}


class Pursuhint(Hints):
    """The objective Hints at those candidate levels that represent clusters of similar levels.

    Re-implementation of PURSUhInT (Expert Systems with Applications 2023), after another
    re-implementation, which quotes the paper. A teacher layer is described by its spatially
    averaged features of about 10^4 images; the distance of two layers is 1 - linear CKA; the
    centres of the clusters of layers are the hint points. Two differences from the paper: the
    candidates are the maps that a teacher cache stores, not all blocks; and the deepest candidate
    is always a centre, because without cross-entropy no other loss would train the layers after the
    last hint.

    Args:
        levels: {student level: teacher map}, the candidates.
        points: number of clusters, which is the number of hint points.
        weight: weight of each hint point.
        distance, hidden, init: as in Hints.
        layer_distances: {teacher map: {teacher map: distance}}, set by the pre-training stage.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    stage_arguments = Hints.stage_arguments | {"layer_distances"}

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        layer_distances: Mapping[str, Mapping[str, float]],
        points: Count = 2,
        weight: Positive = 10.0,
        distance: str = "l2",
        hidden: Count | None = None,
        init: Positive | None = 0.005,
    ) -> None:
        check_levels(levels, student_maps, teacher_maps)
        chosen = hint_levels(levels, teacher_maps, layer_distances, points)
        super().__init__(chosen, student_maps, teacher_maps, weight, distance, hidden, init)

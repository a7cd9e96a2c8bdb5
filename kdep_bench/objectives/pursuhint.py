"""PURSUhInT: hints at layers that represent clusters of similar teacher layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.hints import Hints
from kdep_bench.objectives.maps import Maps, check_levels

SAME = 1e-9  # distance below which two layers count as duplicates


def hint_points(
    distances: Sequence[Sequence[float]], count: int, fixed: int | None = None
) -> list[int]:
    """Indices of the layers that represent `count` clusters, ascending.

    k-means with centres restricted to layers (k-medoids). Starting from centres spread evenly over
    the depth, a centre is exchanged for the layer that lowers the sum of squared distances most,
    until no exchange lowers it. Deterministic.

    Args:
        distances: [L, L], between layers.
        count: number of clusters; fewer are returned if layers are duplicates.
        fixed: a layer that is always a centre.
    """
    layers = range(len(distances))

    def cost(centres: Sequence[int]) -> float:
        return sum(min(distances[i][c] for c in centres) ** 2 for i in layers)

    last, steps = len(distances) - 1, max(count - 1, 1)
    centres = sorted({round(last * (k if count > 1 else 0.5) / steps) for k in range(count)})
    if fixed is not None and fixed not in centres:
        centres = sorted({*centres[:-1], fixed})
    while True:
        swaps = [
            sorted({*centres} - {old} | {new})
            for old, new in product(centres, layers)
            if new not in centres and old != fixed
        ]
        better = min(swaps, key=lambda c: (cost(c), c), default=centres)
        if not cost(better) < cost(centres) - SAME**2:
            break
        centres = better
    kept: list[int] = [] if fixed is None else [fixed]
    for c in centres:
        if all(distances[c][k] > SAME for k in kept):
            kept.append(c)
    return sorted(kept)


class Pursuhint(Hints):
    """The objective Hints at those candidate levels that represent clusters of similar levels.

    Re-implementation of PURSUhInT (Expert Systems with Applications 2023), after another
    re-implementation that quotes it. Every teacher layer is described by its spatially averaged
    features of about 10^4 images; the distance of two layers is 1 - CKA (linear); k-means over
    *layers* has its centres restricted to layers; the centres are the hint points, for any hint
    loss. The candidates here are the levels of the teacher that a cache can store, not each of its
    blocks. One departure: the deepest candidate is always a centre, since without cross-entropy
    nothing else would train the layers after the last hint.

    Args:
        levels: {student level: teacher map}, the candidates.
        points: clusters, and so hint points.
        weight: of each point; the others as in Hints.
        layer_distances: {teacher map: {teacher map: distance}}, set by the pre-training stage.
    """

    requires = Hints.requires | {"layer_distances"}

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
        if not 1 <= points <= len(levels):
            raise KdepError(
                f"the number of hint points is {points}, with {len(levels)} levels",
                expected="at least 1, and at most the number of candidate levels",
                fix="correct `points`, or add levels",
            )
        check_levels(levels, student_maps, teacher_maps)
        deep = sorted(levels, key=lambda own: (teacher_maps[levels[own]]["stride"], own))
        difference = [[layer_distances[levels[a]][levels[b]] for b in deep] for a in deep]
        centres = hint_points(difference, points, fixed=len(deep) - 1)
        chosen = {deep[i]: levels[deep[i]] for i in centres}
        super().__init__(chosen, student_maps, teacher_maps, weight, distance, hidden, init)

"""PURSUhInT: hints at the layers that stand for a cluster of like layers of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.hints import Hints
from kdep_bench.objectives.maps import Maps, check_levels

SAME = 1e-9  # layers as near as this say the same


def hint_points(
    distances: Sequence[Sequence[float]], count: int, fixed: int | None = None
) -> list[int]:
    """Indices of the layers that stand for `count` clusters, ascending.

    k-means with centres restricted to layers (k-medoids): from centres spread evenly over the
    depth, the exchange of a centre for another layer that lowers the sum of squared distances most,
    until none does. Deterministic. Fewer than `count` where the layers have fewer things to say.
    `fixed`: a layer that is a centre whatever it stands for.
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
    """Hints (see there) at those candidate levels that stand for clusters of like levels.

    Reconstruction of PURSUhInT (Expert Systems with Applications 2023), from a re-implementation
    that quotes it: every teacher layer is described by its spatially averaged features of about
    10^4 images, layers are apart by 1 - CKA (linear), k-means over *layers* has its centres
    restricted to layers, and the centres are the hint points of whatever hint loss. The candidates
    here are the levels of the teacher that a cache can hold, not each of its blocks. One departure:
    the deepest candidate is always a centre. Without cross-entropy nothing else teaches what lies
    behind the last hint.

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

"""Alignment: from the teacher's width Dt to the student's Ds, fitted before training.

KDEP's choice is the SVD of the centred features: target z = (f - mean) V[:, :Ds], rotated and cut,
not whitened (CVMI-Lab/KDEP `src/gen_svd_weights.py`). The public code runs a full SVD of [N, Dt];
the right singular vectors are the eigenvectors of the covariance, which one streaming pass gives
with memory O(Dt^2), equal up to sign.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.data.views import open_views, subset
from kdep_bench.errors import KdepError
from kdep_bench.features.cache import open_cache
from kdep_bench.features.transform import Moments, std_ratio

BASIS = "basis.pt"
# Eigenvalues below this share of the largest are rounding noise of float16 features
# (half precision carries about 2**-11 relative error, squared for a variance).
RANK_TOLERANCE = 2.0**-22


class Basis(nn.Module):
    """z = (f - mean) V, with `mean` [Dt], `components` V [Dt, Ds] and `std` [Ds] of z."""

    mean: Tensor
    components: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, components: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("components", components.float())
        self.register_buffer("std", std.float())

    def forward(self, f_BD: Tensor) -> Tensor:
        return (f_BD - self.mean) @ self.components


def svd_basis(moments: Moments, width: int) -> tuple[Basis, Tensor]:
    """The first `width` principal directions and all eigenvalues [Dt], largest first.

    Sign rule: the entry of largest magnitude of every direction is positive, so the same
    covariance gives the same basis. Raises KdepError when Ds > Dt, when there are fewer rows than
    Ds, or when the features have rank below Ds.
    """
    dt = len(moments.mean)
    if width > dt:
        raise KdepError(
            f"the student is {width} wide and the teacher {dt}",
            "a student no wider than the teacher for an SVD alignment",
            "choose a wider teacher or a narrower student",
        )
    if moments.n <= width:
        raise KdepError(
            f"{moments.n} features cannot fix {width} directions",
            f"more than {width} images",
            "use a larger data share",
        )
    values, vectors = torch.linalg.eigh(moments.covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values > values[0] * RANK_TOLERANCE).sum())
    if rank < width:
        raise KdepError(
            f"the teacher's features have rank {rank}, and the student is {width} wide",
            "a rank of at least the student's width",
            "tap the teacher after its last activation (a last linear layer limits the rank)",
        )
    v = vectors[:, :width]
    v = v * v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
    return Basis(moments.mean, v, values[:width].sqrt()), values


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Stage `align`: one pass over the cached features of the data share, then the basis.

    Spec: `width` Ds, `share`, `share_seed`, `align` {type: 'svd'}.
    """
    kind = spec["align"].get("type", "svd")
    if kind != "svd":
        raise KdepError(f"unknown alignment {kind!r}", "svd", "correct `align` in the method")
    cache, views = open_cache(inputs["cache"]), open_views(inputs["views"])
    rows = rows_of(subset(len(views.files), spec["share"], spec["share_seed"]), views.views)
    moments = Moments(cache.width)
    for start in range(0, len(rows), 4096):
        moments.add(torch.from_numpy(cache.rows(rows[start : start + 4096])))
        progress(min(start + 4096, len(rows)), len(rows), "covariance of teacher features")
    basis, values = svd_basis(moments, int(spec["width"]))
    torch.save({**basis.state_dict(), "eigenvalues": values}, out / BASIS)
    return {
        "rows": moments.n,
        "teacher_width": cache.width,
        "width": int(spec["width"]),
        "energy_kept": float(values[: spec["width"]].sum() / values.sum()),
        "std_ratio_before": finite(std_ratio(moments.std)),
        "std_ratio_after_svd": finite(std_ratio(basis.std)),
    }


def finite(x: float) -> float | None:
    """`x`, or None where it is infinite: a channel of the raw feature may never fire."""
    return x if x < float("inf") else None


def rows_of(images: Any, views: int) -> Any:
    """Row numbers (image-major) of all views of the given image numbers, sorted."""
    return (images[:, None] * views + torch.arange(views).numpy()[None]).ravel()


def open_basis(align_dir: Path) -> Basis:
    """The basis of a finished `align` stage."""
    stored = torch.load(align_dir / BASIS, weights_only=True)
    return Basis(stored["mean"], stored["components"], stored["std"])

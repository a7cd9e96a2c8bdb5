"""Stage `align`: fits the alignment to the cached teacher features of a data fraction.

One pass over the features computes their mean and covariance, in O(D^2) memory for a feature
of D channels; the aligners (`aligners.py`) use nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kdep_bench.data.fractions import save_list, select_for_spec
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features.aligners import Aligner, Svd, explained_variance_ratio
from kdep_bench.features.cache_read import open_cache
from kdep_bench.features.policies import check_rows
from kdep_bench.features.transform import Moments, std_ratio
from kdep_bench.registry import build, locate, type_path

READ_ROWS = 4096  # rows that are read at a time, which limits memory


def build_aligner(config: Mapping[str, Any]) -> Aligner:
    """Builds the aligner of a method's `align`; KdepError if its type is not an Aligner."""
    config = {"type": "svd", **config}
    if config["type"] == "svd":
        config["type"] = Svd
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, Aligner)):
        raise KdepError(
            f"the type {type_path(config['type'])} in `align` is not an Aligner",
            expected="'svd' or a class of kdep_bench.features.aligners",
            fix="correct `align` in the method",
        )
    return build({**config, "type": kind})


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Fits the alignment to the features of all views of the images of a data fraction.

    Args:
        spec: `align` (config of an Aligner), `width` of the student and the data fraction (see
            `data.fractions`).
        inputs: folders `cache` and `views`.
        out: folder of this stage, for the files of `Basis.save`.
        progress: called with (rows done, rows, note).

    Returns:
        `rows`: number of features; `image_list`: the images of the data fraction; `teacher_width`
        and `width`: numbers of channels of the teacher's and the student's feature;
        `explained_variance_ratio`: see the function in `aligners`;
        `variance_before` and `variance_after`: sum of the channel variances of the teacher's
        feature and of the aligned feature, in units of the teacher's feature squared;
        `std_ratio_before` and `std_ratio_after_align`: largest over smallest channel standard
        deviation of these two features, None if the smallest is 0.

    Raises:
        KdepError: too few images for the number of directions, features that are not finite or have
            too low a rank, or a cache or views that cannot be read.
    """
    aligner, width = build_aligner(spec["align"]), int(spec["width"])
    cache, views = open_cache(inputs["cache"]), open_views(inputs["views"])
    images = select_for_spec(views.files, spec, inputs)
    rows = row_numbers(images, views.views)
    subject = f"the alignment to a student with {width} channels"
    directions = min(width, cache.width)
    check_rows(len(images), views.views, directions, spec["share"], len(views.files), subject)
    moments = Moments(cache.width)
    for start in range(0, len(rows), READ_ROWS):
        moments.add(torch.from_numpy(cache.rows(rows[start : start + READ_ROWS])))
        progress(min(start + READ_ROWS, len(rows)), len(rows), "covariance of teacher features")
    basis = aligner.fit(moments, width)
    eigenvalues = aligner.eigenvalues
    basis.save(out, **({} if eigenvalues is None else {"eigenvalues": eigenvalues}))
    return {
        "rows": moments.n,
        "image_list": save_list(out, views.files, images),
        "teacher_width": cache.width,
        "width": width,
        "explained_variance_ratio": explained_variance_ratio(moments, basis),
        "variance_before": float(moments.covariance.trace()),
        "variance_after": float(basis.std.double().square().sum()),
        "std_ratio_before": finite_or_none(std_ratio(moments.std)),
        "std_ratio_after_align": finite_or_none(std_ratio(basis.std)),
    }


def finite_or_none(x: float) -> float | None:
    """`x`, or None if it is infinite, as the std ratio is if a channel is constant."""
    return x if x < float("inf") else None


def row_numbers(images: Any, views: int) -> Any:
    """Row numbers (image * views + view) of all views of the image numbers `images`, in order."""
    return (images[:, None] * views + torch.arange(views).numpy()[None]).ravel()

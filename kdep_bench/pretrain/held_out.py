"""Weights the teachers of a method on held-out images, from their caches, before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdep_bench.data.fractions import labels_file, read_labels, select_for_spec
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features.align import row_numbers
from kdep_bench.features.cache_check import open_head
from kdep_bench.features.cache_read import open_cache
from kdep_bench.features.layers import evenly_spaced
from kdep_bench.objectives.base import Demands
from kdep_bench.objectives.held_out import HeldOutOutputs, TeacherWeights, is_held_out
from kdep_bench.registry import locate

# Maximum number of views that are read, evenly spaced over those of the held-out images.
MAX_SAMPLES = 8192


def weigh_teachers(
    spec: Mapping[str, Any], inputs: Mapping[str, Path], required: Demands
) -> TeacherWeights:
    """The weights of the teachers of a method, chosen by `weigh_teachers` of its objective.

    Every process computes the same weights from the same files, also after an interruption.

    Args:
        spec: spec of the pre-training stage.
        inputs: inputs of that stage; `views`, the caches of all roles and, for an objective with
            labels, `prepare` are read.
        required: what the objective needs.

    Raises:
        KdepError: no image is held out, or a teacher has no cache.
    """
    objective, views = spec["method"]["objective"], open_views(inputs["views"])
    images = select_for_spec(views.files, dict(spec), dict(inputs))
    held_out = images[is_held_out(images, objective["held_out"])]
    if not len(held_out):
        raise KdepError(
            f"the method {spec['method']['name']} has held_out={objective['held_out']:g}, but of "
            f"its {len(images)} images none is held out",
            expected="at least one held-out image",
            fix="raise `held_out` in the method's objective, or use more images",
        )
    rows = evenly_spaced(row_numbers(held_out, views.views), MAX_SAMPLES)
    labels = None
    if "labels" in required.needs:
        labels = read_labels(labels_file(dict(inputs)), views.files)[rows // views.views]
    logits = {role: _read_logits(role, spec, inputs, rows) for role in spec["roles"]}
    outputs = HeldOutOutputs(logits, labels, len(held_out))
    return locate(objective["type"]).weigh_teachers(objective, outputs)


def _read_logits(
    role: str, spec: Mapping[str, Any], inputs: Mapping[str, Path], rows: np.ndarray
) -> np.ndarray:
    """[N, C] float64: the cached logits of a teacher, or those computed from its pooled feature."""
    folder = inputs.get(f"{role}.cache")
    if folder is None:
        raise KdepError(
            f"the method {spec['method']['name']} weights its teachers on cached outputs, but the "
            f"teacher {role!r} has no cache",
            fix="remove teacher_source='live' from the method, or budget.teacher='live' from the "
            "suite",
        )
    cache = open_cache(folder)
    if "logits" in cache.extras:
        return cache.rows(rows, "logits").astype(np.float64)
    with torch.no_grad():
        return open_head(folder)(torch.from_numpy(cache.rows(rows)).float()).double().numpy()

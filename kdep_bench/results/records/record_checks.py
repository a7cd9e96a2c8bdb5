"""Checks of a single record that go beyond its schema; used by `validate`.

Each check yields one clause per fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from kdep_bench.results.records.record import Record

MAX_SECONDS = 10 * 365 * 86400.0  # ten years in seconds: a larger time has another unit
# Largest factor between images seen and (seconds times images per second). A larger factor means
# that a time has another unit.
RATE_FACTOR = 20.0
EPOCHS_TOLERANCE = 0.02  # relative: only complete batches are used
_HASH = re.compile(r"[0-9a-f]{8,64}")
_STAGE = re.compile(r"[a-z_]+-.+-[0-9a-f]{12}")


def faults_in(record: Record) -> list[str]:
    """One clause per fault of the record alone."""
    return [fault for check in CHECKS for fault in check(record)]


def _gate_faults(r: Record) -> Iterator[str]:
    if r.status != "ok":
        return
    if r.gate is None:
        yield "it has no load gate, so it is unknown whether the exported weights were used"
        return
    if r.gate.coverage != 1:
        yield f"{100 * r.gate.coverage:.4g} % of the backbone's weights were loaded, not all"
    for kind in ("missing", "unexpected", "mismatched"):
        if tensors := getattr(r.gate, kind):
            yield f"the load gate lists {len(tensors)} {kind} tensors ({str(tensors[0])[:80]})"


def _score_faults(r: Record) -> Iterator[str]:
    if r.status != "ok":
        return
    if (stated := r.metrics.get(r.task.metric)) is None:
        yield f"its metrics do not contain {r.task.metric}, the metric of its score"
    elif stated != r.value:
        yield f"its score is {r.value}, but {r.task.metric} in its metrics is {stated}"
    for name, value in r.metrics.items():
        if not 0 <= value <= 1:
            yield f"the metric {name} is {value:g}; metrics are fractions between 0 and 1"


def _unit_faults(r: Record) -> Iterator[str]:
    seconds = {k: getattr(r.cost, k) for k in ("pretrain_s", "cache_s", "align_s", "transfer_s")}
    for name, value in seconds.items():
        if value is not None and value > MAX_SECONDS:
            yield f"cost.{name} is {value:g}, more than ten years; times are in seconds"
    time, rate, seen = r.cost.pretrain_s, r.cost.images_per_s, r.budget.images_seen
    if time and rate and seen and not 1 / RATE_FACTOR < time * rate / seen < RATE_FACTOR:
        yield (
            f"{seen} images seen do not agree with {time:g} s at {rate:g} images per second; "
            "times are in seconds"
        )
    epochs, images = r.budget.epochs, r.data.images
    if epochs and images and seen and abs(seen / (epochs * images) - 1) > EPOCHS_TOLERANCE:
        yield f"{seen} images seen are not {epochs:g} epochs of {images} images"


def _label_faults(r: Record) -> Iterator[str]:
    if r.arm.label_policy != "labels" and r.arm.labels_used:
        yield f"the label policy is {r.arm.label_policy!r}, but labels were used"


def _time_faults(r: Record) -> Iterator[str]:
    if datetime.fromisoformat(r.created) > datetime.now(UTC) + timedelta(days=1):
        yield f"it was created in the future ({r.created})"


def _hash_faults(r: Record) -> Iterator[str]:
    if not _HASH.fullmatch(r.config_hash):
        yield f"config_hash {r.config_hash[:40]!r} is not a hash of 8 to 64 hexadecimal digits"
    if (stage := r.stages.get("transfer")) != r.id:
        yield f"its transfer stage is {str(stage)[:80]!r}, but should be its id"
    for kind, stage in r.stages.items():
        if not _STAGE.fullmatch(stage):
            yield f"the {kind} stage {stage[:80]!r} does not end in a hash of 12 digits"


CHECKS: tuple[Callable[[Record], Iterator[str]], ...] = (
    _gate_faults,
    _score_faults,
    _unit_faults,
    _label_faults,
    _time_faults,
    _hash_faults,
)

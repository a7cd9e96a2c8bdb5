"""Records for tests: valid fields with invented values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdep_bench.results.records.record import Record, make

LABELS = {"kdep": "label-free", "svd": "label-free", "scratch": "none"}
TASKS = {"probe": "classification", "det": "detection", "seg": "segmentation"}


def fields(
    method: str = "kdep",
    task: str = "probe",
    value: float | None = 0.5,
    pretrain: int = 0,
    transfer: int = 0,
    share: float = 1.0,
    **changes: Any,
) -> dict[str, Any]:
    """The fields of a record.

    Args:
        method, task: names.
        value: the score, a fraction.
        pretrain, transfer: the seeds.
        share: the data fraction.
        changes: fields that replace others.
    """
    distilled = method in ("kdep", "svd")
    policy = LABELS.get(method, "labels")
    trained = method not in ("scratch", "imagenet")
    record_fields: dict[str, Any] = {
        "id": f"transfer-{method}-{share:g}-{task}-{pretrain}-{transfer}",
        "suite": "golden",
        "status": "ok",
        "arm": {
            "method": method,
            "family": "feature" if distilled else "",
            "label_policy": policy,
            "labels_used": policy == "labels",
            "source": "a test",
        },
        "student": {"name": "resnet18_w32", "width": 256, "params": 2_800_000, "flops": 1e8},
        "teacher": {"name": "lite0", "checksum": "ab" * 4, "width": 1280, "flops": 4e8}
        if distilled
        else None,
        "data": {
            "name": "pocket",
            "fingerprint": "f0" * 8,
            "source": "debian+pip",
            "share": share,
            "images": round(10_000 * share),
        },
        "budget": {
            "images_seen": 60_000 if trained else 0,
            "epochs": 6.0 if trained else 0.0,
            "steps": 500 if trained else 0,
            "views": 2,
        },
        "seed": {"pretrain": pretrain, "transfer": transfer},
        "task": {
            "name": task,
            "family": TASKS.get(task, "other"),
            "version": 1,
            "split": "test",
            "metric": "top1",
            "direction": "max",
            "chance": 0.125,
        },
        "value": value,
        "metrics": {} if value is None else {"top1": value},
        "per_class": {} if value is None else {"bird": value, "coin": min(1.0, value + 0.1)},
        "gate": {"matched": 120, "coverage": 1.0},
        "cost": {
            "pretrain_s": 300.0 if trained else None,
            "cache_s": 100.0 if distilled else None,
            "align_s": 2.0 if distilled else None,
            "transfer_s": 30.0,
            "images_per_s": 290.0,
            "device": "cpu",
            "threads": 1,
        },
        "align": {
            "explained_variance_ratio": 0.8,
            "std_ratio_before": 30.0,
            "std_ratio_after_align": 8.0,
            "std_ratio_after_transform": 2.0 if method == "kdep" else 8.0,
        }
        if distilled
        else None,
        "curves": {"loss": [[0, 2.0], [100, 1.0], [200, 0.5]]},
        "stages": {"export": "export-x"} | ({"pretrain": "pretrain-x"} if trained else {}),
        "config_hash": "c0ffee",
        "git": "0123abc",
        "packages": {"torch": "2.14.1"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    record_fields.update(changes)
    return record_fields


def record(*args: Any, **kwargs: Any) -> Record:
    """A valid record; the arguments are those of `fields`."""
    return make(fields(*args, **kwargs))


def failed(*args: Any, **kwargs: Any) -> Record:
    """A record of a failed run; the arguments are those of `fields`."""
    kwargs |= {"value": None, "status": "failed", "error": "the loss became NaN at step 312."}
    return make(fields(*args, **kwargs))


def grid(
    scores: Mapping[str, Mapping[str, list[float]]], share: float = 1.0, **changes: Any
) -> list[Record]:
    """Records of {method: {task: values by transfer seed}}."""
    return [
        record(method, task, v, transfer=t, share=share, **changes)
        for method, tasks in scores.items()
        for task, values in tasks.items()
        for t, v in enumerate(values)
    ]

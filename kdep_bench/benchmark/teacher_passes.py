"""Number of teacher forward passes of a finished suite, as counted by its caches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record


def count(results: Path, work: Path) -> dict[str, Any]:
    """The teacher forward passes behind the records in `results`, whose stages are in `work`.

    Returns:
        `suite`; `records`; `pretrainings`: those with a teacher; `caches`: number of caches they
        used; `forwards`: forward passes that filled them; `rows`: (image, view) pairs in them;
        `samples`: images seen by those pre-trainings, i.e. forward passes of a live teacher.

    Raises:
        KdepError: no finished record, or a cache stage that is not in `work` or has no count.
    """
    records = [r for r in store.load_full(results, store.read(results).runs) if r.status == "ok"]
    if not records:
        raise KdepError(f"{results} has no finished record", fix="run that suite first")
    outputs_by_cache = {cache: _outputs(work, cache) for cache in _caches(records)}
    samples_by_pretraining = {
        r.stages["pretrain"]: r.budget.images_seen or 0 for r in records if _caches([r])
    }
    return {
        "suite": records[0].suite,
        "records": len(records),
        "pretrainings": len(samples_by_pretraining),
        "caches": len(outputs_by_cache),
        "forwards": sum(o["forwards"] for o in outputs_by_cache.values()),
        "rows": sum(o["rows"] for o in outputs_by_cache.values()),
        "samples": sum(samples_by_pretraining.values()),
    }


def _caches(records: Iterable[Record]) -> set[str]:
    """Ids of the cache stages behind the records, those of an intermediate teacher included."""
    return {
        stage_id
        for r in records
        for k, stage_id in r.stages.items()
        if k.rpartition(".")[2] == "cache"
    }


def _outputs(work: Path, cache: str) -> dict[str, Any]:
    outputs = read_strict(work / cache / "stage.json")["outputs"]
    if not {"forwards", "rows"} <= set(outputs):
        raise KdepError(
            f"the stage {cache} does not report its number of forward passes",
            fix="rerun that stage",
        )
    return outputs

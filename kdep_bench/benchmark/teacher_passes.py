"""Number of teacher forward passes of a finished suite, as counted by its caches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.features.cache_origin import computed_by
from kdep_bench.files import read_strict
from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record


def count(results: Path, work: Path) -> dict[str, Any]:
    """Counts the teacher forward passes that the records of a suite needed.

    Args:
        results: results folder with the records.
        work: work dir with their stages.

    Returns:
        `suite`: its name; `records`: number of records; `pretrainings`: number of pre-trainings
        with a teacher; `caches`: number of their caches, where caches with linked arrays and the
        cache that computed these are one; `forwards`: forward passes that filled the caches;
        `rows`: (image, view) pairs in the caches; `samples`: images seen by the pre-trainings, that
        is, the forward passes that a live teacher would need.

    Raises:
        KdepError: there is no finished record, or a cache stage is missing or has no count.
    """
    records = [r for r in store.load_records(results, store.read(results).runs) if r.status == "ok"]
    if not records:
        raise KdepError(f"{results} has no finished record", fix="run that suite first")
    outputs_by_cache = {
        computed_by(work, cache, outputs): outputs
        for cache in sorted(_caches(records))
        for outputs in [_outputs(work, cache)]
    }
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
    """Ids of the cache stages of the records, including those of intermediate teachers."""
    return {
        stage_id
        for record in records
        for role, stage_id in record.stages.items()
        if role.rpartition(".")[2] == "cache"
    }


def _outputs(work: Path, cache: str) -> dict[str, Any]:
    outputs = read_strict(work / cache / "stage.json")["outputs"]
    if not {"forwards", "rows"} <= set(outputs):
        raise KdepError(
            f"the stage {cache} does not report its number of forward passes",
            fix=f"rerun the stage: kdep-bench run SUITE --only {cache} --force {cache}",
        )
    return outputs

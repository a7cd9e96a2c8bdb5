"""How often a finished suite ran its teacher: by the cache's own count, from records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record


def count(results: Path, work: Path) -> dict[str, Any]:
    """The teacher forwards behind the records in `results`, whose stages lie in `work`.

    Returns:
        `suite`; `records`; `pretrainings`, those that read a teacher; `caches`, how many the
        records name; `forwards`, what these say they ran; `rows`, the (image, view) pairs they
        hold; `samples`, what those pre-trainings saw of a teacher: a live one's forwards.

    Raises:
        KdepError: no finished record, or a cache stage that is not in `work` or tells no count.
    """
    records = [r for r in store.load_full(results, store.read(results).runs) if r.status == "ok"]
    if not records:
        raise KdepError(f"{results} has no finished record", fix="run that suite first")
    told = {cache: _outputs(work, cache) for cache in _caches(records)}
    taught = {r.stages["pretrain"]: r.budget.images_seen or 0 for r in records if _caches([r])}
    return {
        "suite": records[0].suite,
        "records": len(records),
        "pretrainings": len(taught),
        "caches": len(told),
        "forwards": sum(o["forwards"] for o in told.values()),
        "rows": sum(o["rows"] for o in told.values()),
        "samples": sum(taught.values()),
    }


def _caches(records: Iterable[Record]) -> set[str]:
    """Ids of the cache stages in the records' chains, a teaching arm's included."""
    return {one for r in records for k, one in r.stages.items() if k.rpartition(".")[2] == "cache"}


def _outputs(work: Path, cache: str) -> dict[str, Any]:
    outputs = read_strict(work / cache / "stage.json")["outputs"]
    if not {"forwards", "rows"} <= set(outputs):
        raise KdepError(
            f"the stage {cache} does not report its number of forward passes",
            fix="rerun that stage",
        )
    return outputs

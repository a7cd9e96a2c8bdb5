"""Records, statistics, claims, leaderboard and page. Imports neither torch nor OpenMMLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def build(
    results_dir: Path,
    suite: str | None = None,
    claims: list[dict[str, Any]] | None = None,
    method_inputs: dict[str, dict[str, Any]] | None = None,
    require_records: bool = False,
    factors: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Rebuilds all tables and the page of `results_dir` from its records; see `report.build`."""
    from kdep_bench.results.report import report

    return report.build(Path(results_dir), suite, claims, method_inputs, require_records, factors)

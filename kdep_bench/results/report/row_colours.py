"""Colours of rows in charts: one for KDEP and for each reference, and one per method family."""

from __future__ import annotations

from collections.abc import Mapping

from kdep_bench.results.board.board import RowKey
from kdep_bench.results.board.row_summary import RowSummary
from kdep_bench.results.report.charts import COLOURS

# These methods keep their colour in every chart and report.
FIXED = {"kdep": 0, "supervised": 1, "scratch": 2, "imagenet": 3}


def key_of(row: RowKey, summaries: Mapping[RowKey, RowSummary]) -> str:
    """Key of the row's colour: its method if that is in `FIXED`, otherwise its method family."""
    if row.method in FIXED:
        return row.method
    return f"other {summaries[row].method.family}".strip()


def by_key(summaries: Mapping[RowKey, RowSummary]) -> dict[str, int]:
    """Method or method family -> colour class; more than four families share four classes."""
    keys = sorted({key_of(row, summaries) for row in summaries} - set(FIXED))
    free = COLOURS - len(FIXED)
    shown = {row.method for row in summaries}
    fixed = {method: n for method, n in FIXED.items() if method in shown}
    return fixed | {key: len(FIXED) + i % free for i, key in enumerate(keys)}

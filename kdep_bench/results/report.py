"""Records in, tables and page out; see `build`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from kdep_bench.files import write_atomic
from kdep_bench.results import leaderboard, store
from kdep_bench.results.table import make_board


def build(
    results_dir: Path, suite: str | None = None, claims: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Rebuilds leaderboard.md, .csv, .tex and index.html of `results_dir` from its records.

    Args:
        results_dir: the folder that holds records/.
        suite: keep only records of this suite; all where None.
        claims: claim configs to judge; kept beside the records as claims.json, which is what a
            later call without `claims` uses.

    Returns:
        counts of records by status, the claims' verdicts, remarks, and the files written.

    Raises:
        KdepError: `results_dir` is no folder, or a claim is no valid claim.
    """
    results_dir = Path(results_dir)
    board = make_board(store.read(results_dir), suite)
    view = leaderboard.make_view(board, [])
    files = {
        "leaderboard.md": leaderboard.markdown(view),
        "leaderboard.csv": leaderboard.csv_table(view),
        "leaderboard.tex": leaderboard.latex(view),
    }
    for name, content in files.items():
        write_atomic(results_dir / name, content)
    counts = Counter(r.status for r in board.runs)
    return {
        "suite": board.suite,
        "records": len(board.runs),
        **{s: counts[s] for s in ("ok", "failed", "missing")},
        "damaged": len(board.damaged),
        "claims": {},
        "remarks": board.remarks,
        "files": [str(results_dir / name) for name in files],
    }

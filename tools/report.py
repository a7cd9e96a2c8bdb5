#!/usr/bin/env python
"""Rebuild tables and page from the records, or compare two results folders.

python tools/report.py results/pocket
python tools/report.py diff results/pocket results/pocket_new
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdep_bench.console import run_main
from kdep_bench.errors import KdepError


def _claims(folder: Path) -> list[dict[str, Any]] | None:
    """The claims of configs/claims, for a results folder without claims.json."""
    if (folder / "claims.json").is_file() or not folder.is_dir():
        return None
    from kdep_bench.results.claims.verdict import load_folder

    return load_folder(Path(__file__).resolve().parent.parent / "configs" / "claims")


def _build(folder: Path, suite: str | None) -> int:
    if (folder / "gpu_check.json").is_file():
        from kdep_bench.files import read_json
        from kdep_bench.gpu_check.report import REPORT, write_report

        write_report(read_json(folder / "gpu_check.json"), folder / REPORT)
        print(f"  wrote {folder / REPORT}")
        return 0
    from kdep_bench.results import build

    done = build(folder, suite, _claims(folder))
    counts = ", ".join(f"{done[k]} {k}" for k in ("ok", "failed", "missing", "damaged"))
    print(f"{done['suite']}: {done['records']} records ({counts})")
    for sentence in done["not_read"]:
        print(f"  not read: {sentence}", file=sys.stderr)
    for name, verdicts in done["claims"].items():
        print(f"  claim {name}: " + ", ".join(f"{k}: {v}" for k, v in verdicts.items()))
    for path in done["files"]:
        print(f"  wrote {path}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", metavar="FOLDER", help="results folder(s), or: diff A B")
    parser.add_argument("--suite", help="use only records of this suite")
    args = parser.parse_args(argv)
    try:
        if args.what[0] == "diff":
            if len(args.what) != 3:
                parser.error("diff takes two results folders")
            from kdep_bench.results.report.diff import diff

            print(diff(Path(args.what[1]), Path(args.what[2]), args.suite))
            return 0
        for folder in args.what:
            _build(Path(folder), args.suite)
        return 0
    except KdepError as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_main(main)

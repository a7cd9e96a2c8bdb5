#!/usr/bin/env python
"""Export a suite's finished students: backbone.pth, backbone.safetensors and a model card each.

python tools/publish.py pocket --out published [--only kdep]

Exit codes: 0 all published, 1 some are unfinished or damaged (listed), 2 an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 2 with a sentence for a fault, 1 where students are missing."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("suite", help="a suite config, or its name in configs/suites/")
    p.add_argument(
        "--out", type=Path, required=True, help="output folder; one sub-folder per student"
    )
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only students whose export stage id contains this",
    )
    p.add_argument("--partial", action="store_true", help="exit with 0 even if some are unfinished")
    args = p.parse_args(argv)
    from kdep_bench.cli.publish import Gaps, publish
    from kdep_bench.errors import KdepError
    from kdep_bench.suite.config import REPO, load_suite
    from kdep_bench.suite.data_identity import with_content
    from kdep_bench.suite.plan import build_plan

    try:
        work = (args.work_dir or REPO / "work_dirs").absolute()
        suite, lines = with_content(load_suite(args.suite), work)
        for line in lines:
            print(line, file=sys.stderr)
        plan = build_plan(suite)
        export_ids = {i for i, s in plan.stages.items() if s.kind == "export" and args.only in i}
        if not export_ids:
            raise KdepError(
                f"--only {args.only!r} matches no export stage of {suite.name}",
                expected="part of one of: "
                + ", ".join(i for i, s in plan.stages.items() if s.kind == "export"),
                fix="correct --only",
            )
        gaps = Gaps()
        made = publish(suite, plan, work, args.out, export_ids, gaps)
    except KdepError as e:
        print(f"publish: {e}", file=sys.stderr)
        return 2
    for folder in made:
        print(folder)
    for remark in gaps.remarks:
        print(f"publish: {remark}", file=sys.stderr)
    for stage_id, why in gaps.left_out.items():
        print(f"publish: not published: {stage_id}: {why}", file=sys.stderr)
    if gaps.left_out:
        print(
            f"publish: {len(made)} of {len(export_ids)} students published; run the suite for "
            "the others, select students with --only, or allow this with --partial",
            file=sys.stderr,
        )
    return int(bool(gaps.left_out) and not args.partial)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

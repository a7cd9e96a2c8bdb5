"""Rebuild tables and pages from records, compare two results folders, or check submitted records.

kdep-bench report results/pocket
kdep-bench report results/pocket_full --seeds-needed
kdep-bench report --index results
kdep-bench report diff results/pocket results/pocket_new
kdep-bench report validate FOLDER --against results/pocket
kdep-bench report validate FOLDER --join results/pocket --name LAB

validate prints one sentence per fault and exits with 1 if there is one. With --join, and without
faults, the records are copied into that results folder; their rows are marked with NAME.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError, first_of
from kdep_bench.paths import CONFIGS


def _claims(folder: Path) -> list[dict[str, Any]] | None:
    """The claims of configs/claims, for a folder that has no claims.json; otherwise None.

    A claims.json in `folder` takes precedence. For a folder that does not exist, `build` reports
    the error.
    """
    if (folder / "claims.json").is_file() or not folder.is_dir():
        return None
    from kdep_bench.results.claims.verdict import load_folder

    return load_folder(CONFIGS / "claims")


def _check_single_suite(folder: Path) -> None:
    """Raises KdepError for a folder that contains results folders instead of records."""
    inner = sorted(p.parent.name for p in folder.glob("*/records") if p.is_dir())
    if inner and not (folder / "records").is_dir():
        raise KdepError(
            f"the folder {folder} has the results of several suites: {first_of(inner, 4)}",
            expected="the results folder of one suite",
            fix=f"give one of them, such as {folder / inner[0]}, or use --index {folder} for a "
            "page that lists them all",
        )


def _build(folder: Path, suite: str | None) -> int:
    """Rebuilds the tables and pages of a results folder, and prints the files; returns 0.

    A folder with a gpu_check.json is the output of `kdep-bench gpu-check`: only its gpu.md is
    rebuilt.
    """
    if (folder / "gpu_check.json").is_file():
        from kdep_bench.files import read_json
        from kdep_bench.gpu_check.report import REPORT, write_report

        write_report(read_json(folder / "gpu_check.json"), folder / REPORT)
        print(f"  wrote {folder / REPORT}")
        return 0
    from kdep_bench.results import build

    _check_single_suite(folder)
    summary = build(folder, suite, _claims(folder), require_records=True)
    counts = ", ".join(f"{summary[k]} {k}" for k in ("ok", "failed", "missing", "damaged"))
    print(f"{summary['suite']}: {summary['records']} records ({counts})")
    for sentence in summary["not_read"]:
        print(f"  not read: {sentence}", file=sys.stderr)
    for name, verdicts in summary["claims"].items():
        print(f"  claim {name}: " + ", ".join(f"{k}: {v}" for k, v in verdicts.items()))
    for path in summary["files"]:
        print(f"  wrote {path}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    """Checks submitted records and, with --join, adds them to a results folder."""
    from kdep_bench.results.records.submission import join
    from kdep_bench.results.records.validate import validate

    folder, published_folder = Path(args.what[1]), args.join or args.against
    published = Path(published_folder) if published_folder else None
    findings = validate(folder, published, other_budgets=args.other_budgets)
    for note in findings.notes:
        print(f"  note: {note}")
    for fault in findings.faults:
        print(f"  fault: {fault}", file=sys.stderr)
    counts = f"{folder}: {len(findings.records)} records read, {len(findings.faults)} faults"
    if findings.faults:
        print(counts, file=sys.stderr)
        return 1
    print(counts)
    if args.join:
        print(f"  joined as {join(findings, Path(args.join), args.name, folder)}")
        return _build(Path(args.join), None)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "what", nargs="*", metavar="FOLDER", help="results folder(s), or: diff A B, validate FOLDER"
    )
    p.add_argument("--suite", help="use only records of this suite")
    p.add_argument(
        "--index",
        metavar="RESULTS",
        help="write RESULTS/index.html, a page that lists all suites in RESULTS. If the suite "
        "methods_pocket is among them, also write RESULTS/methods.md",
    )
    p.add_argument(
        "--seeds-needed",
        action="store_true",
        help="print, for each task and probe, how many seeds make the measured differences "
        "significant with probability 0.8; write nothing",
    )
    group = p.add_argument_group("validate")
    group.add_argument("--against", metavar="RESULTS", help="results folder to compare with")
    group.add_argument("--join", metavar="RESULTS", help="results folder to add the records to")
    group.add_argument("--name", help="with --join: who submits the records")
    group.add_argument(
        "--other-budgets",
        action="store_true",
        help="accept methods whose pre-training budgets differ from each other, or from those in "
        "RESULTS",
    )
    return p


def _count(folders: list[str]) -> str:
    """The number of results folders, for an error."""
    return f"{len(folders) or 'no'} results folder{'s' * (len(folders) != 1)}"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if bool(args.what) == bool(args.index):
        both = bool(args.what)
        p.error(
            "results folders and --index cannot be used together. Fix: remove one of them"
            if both
            else "no results folder was given. Fix: add one, such as results/pocket, or --index "
            "RESULTS for a page that lists all suites"
        )
    if args.seeds_needed and (args.suite or not args.what or args.what[0] in ("diff", "validate")):
        p.error("--seeds-needed works only with results folders, without --suite, diff or validate")
    try:
        if args.index:
            from kdep_bench.results.report.index import write_index
            from kdep_bench.results.report.systems import SUITE, write_methods_page
            from kdep_bench.suite.config import load_config, names

            root = Path(args.index)
            if (root / SUITE / "leaderboard.csv").is_file():
                configs = {name: load_config("method", name) for name in names("method")}
                for kind in ("probe", "search"):
                    configs |= {f"{kind}:{name}": load_config(kind, name) for name in names(kind)}
                print(f"  wrote {write_methods_page(root, configs)}")
            print(f"  wrote {write_index(root, CONFIGS / 'suites')}")
            return 0
        if args.what[0] == "diff":
            if len(args.what) != 3:
                p.error(f"diff got {_count(args.what[1:])}. Fix: write diff OLD NEW")
            from kdep_bench.results.report.diff import diff

            print(diff(Path(args.what[1]), Path(args.what[2]), args.suite))
            return 0
        if args.what[0] == "validate":
            if len(args.what) != 2:
                p.error(f"validate got {_count(args.what[1:])}. Fix: write validate FOLDER")
            if bool(args.join) != bool(args.name) or (args.join and args.against):
                p.error(
                    "--join works only with --name and without --against. Fix: "
                    + ("remove --against" if args.join and args.against else "give both")
                )
            return _validate(args)
        if args.join or args.against or args.name or args.other_budgets:
            p.error(
                "--against, --join, --name and --other-budgets work only with validate. Fix: "
                f"write validate before the folder: validate {args.what[0]}"
            )
        if args.seeds_needed:
            from kdep_bench.results.report.seeds_table import tables

            for folder in args.what:
                _check_single_suite(Path(folder))
                print(tables(Path(folder)))
            return 0
        for folder in args.what:
            _build(Path(folder), args.suite)
        return 0
    except KdepError as e:
        print(f"kdep-bench report: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

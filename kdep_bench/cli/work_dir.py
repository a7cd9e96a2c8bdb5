"""List the stages and cluster runs in a work dir with their sizes; delete unreferenced ones.

kdep-bench work-dir                           # list everything, with sizes and references
kdep-bench clean pocket smoke                 # list only unreferenced ones
kdep-bench clean pocket smoke --delete         # delete them

A stage is referenced if a record in results/*/records, or in another results folder written from
this work dir, cites it; if a suite named here plans it; if a referenced stage depends on it; or if
it is running or queued. Without --delete nothing is removed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from kdep_bench.engine.work_dir import WorkDirEntry


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("suites", nargs="*", metavar="SUITE", help="keep the stages of these suites")
    p.add_argument("--work-dir", type=Path, help="work dir (default: work_dirs/)")
    p.add_argument(
        "--results-dir",
        type=Path,
        action="append",
        metavar="DIR",
        help="another folder with records/ whose stages are kept, in addition to results/* and the "
        "results folders listed in the work dir",
    )
    p.add_argument(
        "--forget",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="remove a results folder from the work dir's list, if the folder no longer exists",
    )
    p.add_argument(
        "--gc",
        action="store_true",
        help="list only unreferenced stages and cluster runs, as `clean` does",
    )
    p.add_argument(
        "--delete", action="store_true", help="with --gc or `clean`: delete the listed ones"
    )
    p.add_argument("--json", action="store_true", help="print the list as JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if args.delete and not args.gc:
        p.error("--delete works only with --gc. Fix: add --gc")
    try:
        return _run(args)
    except KdepError as e:
        command = "clean" if args.gc else "work-dir"  # `clean` is `work-dir --gc`
        print(f"kdep-bench {command}: {e}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    """Lists or deletes entries of the work dir; returns the exit code."""
    from kdep_bench.engine import cited_stages, work_dir

    work = (args.work_dir or OUTPUT / "work_dirs").absolute()
    folders = _results_folders(args)
    planned = _planned(args, work)
    for folder in args.forget:
        cited_stages.unregister(work, folder)
    registered = cited_stages.citing_folders(work)
    folders += [r.results for r in registered if r.exists and r.results not in folders]
    missing = [r for r in registered if not r.exists]
    cited = work_dir.citations(folders)
    entries = work_dir.survey(work, cited, planned)
    chosen = work_dir.prunable(entries, bool(cited or planned)) if args.gc else entries
    print(work_dir.as_json(chosen) if args.json else work_dir.table(chosen))
    out = sys.stderr if args.json else sys.stdout
    for registration in missing:
        note = "no longer exists; stages that only its records cite are unreferenced"
        print(f"{registration.results} {note}", file=out)
    print(f"{work}: {work_dir.summary(entries)}", file=out)
    if args.gc and not args.delete:
        print(f"unreferenced: {work_dir.summary(chosen)}; --delete removes them", file=out)
    elif args.gc:
        _check_available([r.results for r in missing if not r.is_removed])
        _delete(work, chosen, out)
    return 0


def _results_folders(args: argparse.Namespace) -> list[Path]:
    """The folders in results/, and the folders given with --results-dir."""
    for folder in args.results_dir or []:
        if not (folder / "records").is_dir():
            raise KdepError(
                f"{folder} is not a results folder: it has no records/", fix="check --results-dir"
            )
    published = sorted((OUTPUT / "results").glob("*"))
    return published + [folder.absolute() for folder in args.results_dir or []]


def _planned(args: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """Stage id -> names of the suites on the command line that plan it."""
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.data_identity import is_read, with_content
    from kdep_bench.suite.plan import build_plan

    planned: dict[str, list[str]] = {}
    for name in args.suites:
        suite, lines = with_content(load_suite(name), work)
        for line in lines:
            print(line, file=sys.stderr)
        if args.gc and not is_read(suite):
            raise KdepError(
                f"the data of the suite {name} cannot be read here, so the ids of its stages are "
                "unknown",
                fix="run this where the data can be read, or leave that suite out (stages that "
                "records use are kept)",
            )
        plan = build_plan(suite)
        for stage_id in plan.stages:
            planned.setdefault(stage_id, []).append(plan.name)
    return planned


def _check_available(unavailable: list[Path]) -> None:
    """Raises KdepError if a results folder may be on a disk that is not mounted."""
    if unavailable:
        raise KdepError(
            f"the results folder {unavailable[0]} is not available (its parent folder is missing "
            "too; perhaps its disk is not mounted), so the stages that its records use are unknown",
            fix=f"make it available; if it was deleted, add --forget {unavailable[0]}",
        )


def _delete(work: Path, entries: list[WorkDirEntry], out: TextIO) -> None:
    """Deletes the entries that no process uses, and prints the result."""
    from kdep_bench.engine import work_dir

    removed = [e for e in entries if work_dir.remove(work, e)]
    print(f"removed {work_dir.summary(removed)}", file=out)
    for entry in entries:
        if entry not in removed:
            print(f"skipped {entry.id}: in use", file=out)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

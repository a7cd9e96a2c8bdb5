"""Print the path and the end of a stage's log.

kdep-bench logs 'pretrain*kdep.s0*'              # the stage whose id contains or matches this
kdep-bench logs 'pretrain*kdep.s0*' --lines 200
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

_TAIL_BYTES = 1 << 20  # bytes at the end of a log that are read
_MAX_LISTED = 10  # largest number of stages that an error names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", metavar="STAGE", help="part of a stage id, or a glob for it")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument(
        "--lines", type=int, default=40, metavar="N", help="lines to print (default: 40; 0: all)"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    args = parser().parse_args(argv)
    work = (args.work_dir or OUTPUT / "work_dirs").absolute()
    try:
        if args.lines < 0:
            raise KdepError(f"--lines is {args.lines}", expected="0 or more", fix="correct --lines")
        path = find_log(work, args.stage)
        print(path)
        print(tail(path, args.lines), end="")
    except KdepError as e:
        print(f"kdep-bench logs: {e}", file=sys.stderr)
        return 2
    return 0


def find_log(work: Path, pattern: str) -> Path:
    """The log of the stage whose id equals or matches `pattern`.

    Raises:
        KdepError: the work dir does not exist, no stage with a log matches, or several do.
    """
    from kdep_bench.engine import state
    from kdep_bench.engine.work_dir import check_exists, stage_ids

    check_exists(work)
    logs = {i: work / i / state.LOG for i in stage_ids(work)}
    modified = {i: path.stat().st_mtime for i, path in logs.items() if path.is_file()}
    listing = f"kdep-bench status --work-dir {shlex.quote(str(work))} --json"
    return logs[one_stage(pattern, modified, f"with a log in {work}", listing)]


def one_stage(pattern: str, ids: Mapping[str, float], where: str, listing: str) -> str:
    """The id that equals `pattern`, or the only id that matches it.

    Args:
        pattern: an id, a part of an id, or a glob.
        ids: id -> a number; an error lists the ids with the largest numbers first.
        where: describes the ids in errors, for example "of pocket".
        listing: the command that lists the ids, for errors.

    Raises:
        KdepError: no id matches, or several do.
    """
    from kdep_bench.engine.select import did_you_mean, matcher

    matches = matcher(pattern)
    chosen = [pattern] if pattern in ids else [i for i in ids if matches(i)]
    if not chosen:
        raise KdepError(
            f"no stage {where} matches {pattern!r}",
            fix=f"{did_you_mean(pattern, ids)}list the stages: {listing}",
        )
    if len(chosen) > 1:
        chosen.sort(key=lambda i: -ids[i])
        more = f", ... ({len(chosen) - _MAX_LISTED} more)" if len(chosen) > _MAX_LISTED else ""
        raise KdepError(
            f"{len(chosen)} stages {where} match {pattern!r}",
            expected=f"part of one id: {', '.join(chosen[:_MAX_LISTED])}{more}",
            fix="give more of the id",
        )
    return chosen[0]


def tail(path: Path, lines: int) -> str:
    """The last `lines` lines of a log, from at most its last MiB; 0: the whole log."""
    from kdep_bench.safe_files import open_regular

    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        if lines:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        raw = file.read()
    last_lines = raw.decode("utf-8", "backslashreplace").splitlines(keepends=True)[-lines:]
    text = "".join(last_lines)
    return text if text.endswith("\n") or not text else f"{text}\n"


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

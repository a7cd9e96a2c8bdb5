"""Search for a student and settings within size limits, scored on the validation split.

kdep-bench search smoke_kdep                       # run, or resume from the log
kdep-bench search smoke_kdep --sampler random      # random proposals, for comparison
kdep-bench search --replay searches/smoke_kdep-tpe-0.jsonl    # print the best trial of a log

The best student is written as a config that suites can name.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

EPILOG = """Configs are executed as Python code: read other people's configs before running them.
Exit codes: 0 finished, 1 a stage failed that all trials need, 2 wrong config or argument, 130 or
143 interrupted; the same command then continues."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("search", nargs="?", help="a search config, or its name in configs/searches/")
    p.add_argument(
        "--replay", type=Path, metavar="LOG", help="print the best trial of a log and exit"
    )
    p.add_argument("--dry-run", action="store_true", help="print the budgets and exit")
    samplers = ("tpe", "random", "contraction")
    p.add_argument("--sampler", choices=samplers, help="default: as in the config")
    p.add_argument("--seed", type=int, help="seed of the proposals (default: as in the config)")
    p.add_argument(
        "--trials", type=int, help="number of trained trials (default: as in the config)"
    )
    p.add_argument("--log", type=Path, help="default: searches/<search>-<sampler>-<seed>.jsonl")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument(
        "--out",
        type=Path,
        help="folder for the config of the best student (default: students/ in $KDEP_CONFIGS, or "
        "in configs/)",
    )
    p.add_argument("--jobs", "-j", type=int, help="parallel stages (default: one per core)")
    p.add_argument("--gpus", help="GPU numbers, e.g. 0,1 ('' = none; default: all)")
    p.add_argument("--plain", action="store_true", help="no progress bars, even on a terminal")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    p = parser()
    args = p.parse_args(argv)
    if not args.search and args.replay is None:
        p.error(
            "no search was given. Fix: add a name (kdep-bench searches lists them), or --replay LOG"
        )
    try:
        return _replay(args) if args.replay is not None else _run(args)
    except KdepError as e:
        print(f"kdep-bench search: {e}", file=sys.stderr)
        return 2


def _load(args: argparse.Namespace):
    """The search config, with the values that the command line overrides."""
    from kdep_bench.search.config import load_search

    return load_search(args.search, sampler=args.sampler, seed=args.seed, trials=args.trials)


def _work_dir(args: argparse.Namespace) -> Path:
    return (args.work_dir or OUTPUT / "work_dirs").absolute()


def _replay(args: argparse.Namespace) -> int:
    """Prints the summary of a log; with a search name also checks that the log belongs to it."""
    from kdep_bench.search import log as logs

    log = logs.read(args.replay)
    if log is None:
        raise KdepError(
            f"the log {args.replay} does not exist, or has no complete line",
            fix="correct the path after --replay",
        )
    if args.search:
        from kdep_bench.search.run import header_of

        logs.check_settings(log, header_of(_load(args), _work_dir(args)))
    if log.is_torn:
        print(f"the last line of {args.replay} is incomplete and was not used")
    print(logs.summary(log.trials, log.header.settings))
    return 0


def _run(args: argparse.Namespace) -> int:
    """Runs or resumes the search, prints its summary and writes the best student's config."""
    from kdep_bench.search import log as logs
    from kdep_bench.search import run, winner

    search = _load(args)
    work = _work_dir(args)
    header = run.header_of(search, work)
    path = args.log or OUTPUT / "searches" / (
        f"{search.name}-{search.file.sampler}-{search.file.seed}.jsonl"
    )
    if args.dry_run:
        log = logs.read(path)
        if log is not None:
            logs.check_settings(log, header)
        print(run.description(search, log.trials if log is not None else ()))
        return 0
    try:
        trials = run.run(search, path, header, _stages(args, search, header, work), _print_line)
    except run.Interrupted as e:
        print(
            "interrupted; finished stages and trials are kept, and the same command continues",
            file=sys.stderr,
        )
        return 128 + e.signal
    print(logs.summary(trials, header.settings))
    best_trial = logs.best(trials, header.settings)
    assert best_trial is not None  # `summary` raises an error if there is none
    config_path, is_new = winner.write(search, best_trial, _out(args), header.settings["metric"])
    print(f"{'wrote' if is_new else 'exists already:'} {config_path}")
    return 0


def _stages(args: argparse.Namespace, search, header, work: Path):
    """The object that runs the stages of trials on this machine's cores and GPUs.

    `header`: the first line of the log, with the settings of the search.
    """
    from kdep_bench.engine import local_pool, machine
    from kdep_bench.engine.progress import view_for
    from kdep_bench.search.run import Stages

    if args.gpus is None:
        gpus = machine.find_gpus()
    else:
        gpus = machine.parse_gpus(args.gpus)
        machine.check_installed(gpus)
    options = local_pool.PoolOptions(jobs=args.jobs, gpus=gpus)
    view = view_for(sys.stdout, args.plain)
    return Stages(search, header.settings["data"], work, options, view)


def _out(args: argparse.Namespace) -> Path:
    """Folder for the config of the best student."""
    configs = os.environ.get("KDEP_CONFIGS") or OUTPUT / "configs"
    return args.out or Path(configs) / "students"


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

"""Command line of `kdep-bench run`: its options, and the checks of them that need no suite."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from kdep_bench.cli.parser import Parser
from kdep_bench.engine import machine
from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults

EPILOG = """Configs are executed as Python code: read other people's configs before running them.
Exit codes: 0 all done, 1 a stage failed, 2 wrong config or argument, 130 or 143 interrupted."""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; it imports no large packages, so that --help is fast."""
    p = Parser(
        description="Run a suite. Finished stages are skipped, interrupted ones resume.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_suite(p)
    _add_selection(p)
    _add_running(p)
    _add_forecast(p)
    _add_cluster(p)
    _add_output(p)
    return p


def _add_suite(p: argparse.ArgumentParser) -> None:
    p.add_argument("suite", nargs="?", help="a suite config, or its name in configs/suites/")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument("--results-dir", type=Path, help="output folder (default: results/<suite>/)")


def _add_selection(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="run only stages of this method, task, student, kind or id (substring or glob) and "
        "their dependencies",
    )
    p.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="rerun these stages (kind, substring of the id, or glob) and all that depend on them",
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the stages in order, why each would run, and the cost",
    )


def _add_running(p: argparse.ArgumentParser) -> None:
    p.add_argument("--jobs", "-j", type=int, help="parallel stages (default: one per core)")
    p.add_argument("--gpus", help="GPU numbers, e.g. 0,1 ('' = none; default: all)")
    p.add_argument(
        "--retry", type=int, default=0, metavar="N", help="retries of a failed stage (default: 0)"
    )
    after_failure = p.add_mutually_exclusive_group()
    after_failure.add_argument(
        "--keep-going", action="store_true", help="run independent stages after a failure (default)"
    )
    after_failure.add_argument(
        "--fail-fast", action="store_true", help="start no stage after a failure"
    )


def _add_forecast(p: argparse.ArgumentParser) -> None:
    throughput = p.add_mutually_exclusive_group()
    throughput.add_argument(
        "--device-rate",
        metavar="RATE",
        help="speed that the forecast assumes: TFLOP/s, or DEVICE.FORMAT:FRACTION of a device's "
        "peak, e.g. a100.tf32:0.3",
    )
    throughput.add_argument(
        "--measure-throughput",
        action="store_true",
        help="for the forecast: measure the speed of the suite's networks on this machine, some "
        "seconds per network",
    )
    throughput.add_argument("--probe", **_old_name("measure_throughput"))
    p.add_argument(
        "--count-flops",
        action="store_true",
        help="for the forecast: count the FLOPs of networks whose FLOPs are not known yet",
    )
    p.add_argument("--count", **_old_name("count_flops"))
    p.add_argument(
        "--budget-hours",
        type=float,
        metavar="H",
        help="exit with an error if the run would take more than H GPU-hours",
    )
    p.add_argument(
        "--fit-budget",
        action="store_true",
        help="with --budget-hours: run only some comparisons (all methods on one task with one "
        "pair of seeds), as many as fit into H; those with the lowest cost per transfer run first",
    )
    p.add_argument("--fit", **_old_name("fit_budget"))


def _add_cluster(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--executor",
        default="local",
        metavar="NAME",
        help="local (default), or through Snakemake: slurm, snakemake-local or another plugin",
    )
    p.add_argument(
        "--snakemake",
        default="",
        metavar="'ARGUMENTS'",
        help="extra Snakemake arguments, e.g. '--default-resources slurm_partition=main'",
    )
    p.add_argument(
        "--write-plan",
        type=Path,
        metavar="FILE",
        help="write the plan for `python -m kdep_bench.engine.stage` and exit",
    )


def _add_output(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--rehearse",
        action="store_true",
        help="run every stage of a full-scale suite on tiny generated data with random teacher "
        "weights (default work dir: work_dirs/rehearsal/)",
    )
    p.add_argument("--verify", action="store_true", help="recompute all file checksums first")
    p.add_argument("--report", action="store_true", help="rebuild tables even if nothing changed")
    p.add_argument("--plain", action="store_true", help="no progress bars, even on a terminal")
    p.add_argument("--json", action="store_true", help="with --dry-run or --list: print JSON")
    p.add_argument(
        "--list",
        choices=(
            "methods",
            "teachers",
            "students",
            "tasks",
            "probes",
            "suites",
            "data",
            "claims",
            "searches",
        ),
        help="list the configs of one kind and exit",
    )


def _old_name(dest: str) -> dict[str, Any]:
    """Arguments of `add_argument` for a former name of an option; --help does not show it."""
    return {"dest": dest, "action": "store_true", "help": argparse.SUPPRESS}


def check_arguments(args: argparse.Namespace) -> None:
    """Raises KdepError for values out of range, and for options that contradict each other."""
    from kdep_bench.engine.cluster import check_executor

    faults = Faults()
    for name, smallest in (("jobs", 1), ("retry", 0)):
        value = getattr(args, name)
        if value is not None and value < smallest:
            expected = f"{smallest} or more"
            faults.add(
                KdepError(f"--{name} is {value}", expected=expected, fix=f"correct --{name}")
            )
    # --list was handled before, so only --dry-run is left.
    if args.json and not args.dry_run:
        faults.add(KdepError("--json works only with --dry-run", fix="add --dry-run"))
    with faults.collect():
        check_executor(args.executor)
    _check_budget(args, faults)
    faults.raise_any("the command")


def _check_budget(args: argparse.Namespace, faults: Faults) -> None:
    """Adds faults of the options of the forecast to `faults`."""
    budget = args.budget_hours
    if budget is not None and not 0 < budget < math.inf:
        faults.add(
            KdepError(
                f"--budget-hours is {budget:g}",
                expected="a positive number",
                fix="correct --budget-hours",
            )
        )
    if args.fit_budget and budget is None:
        faults.add(KdepError("--fit-budget needs --budget-hours", fix="add --budget-hours HOURS"))
    for name in ("device_rate", "measure_throughput", "count_flops"):
        if getattr(args, name) and not args.dry_run and budget is None:
            problem = f"--{name.replace('_', '-')} works only with --dry-run or --budget-hours"
            faults.add(KdepError(problem, fix="add one of them"))


def selected_gpus(args: argparse.Namespace) -> tuple[str, ...]:
    """The GPUs in --gpus; without this option all GPUs of this machine.

    Raises:
        KdepError: the stages run on this machine, and it does not have these GPUs.
    """
    if args.gpus is None:
        return machine.find_gpus()
    gpus = machine.parse_gpus(args.gpus)
    if args.executor in ("local", "snakemake-local"):
        machine.check_installed(gpus)
    return gpus

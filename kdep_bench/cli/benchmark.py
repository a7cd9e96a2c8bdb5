"""Measure speed and memory of the pre-training code on an idle machine, and compare with targets.

Measurements that this run does not repeat are kept from an earlier run. `--quick` only tests that
all measurements run.

    kdep-bench benchmark --threads 1
    kdep-bench benchmark --threads 1 --parts --against lightly-train --venv .venv-lightly \\
        --prepared work_dirs/prepare-pocket-...          # after `make lightly` and `make pocket`
    kdep-bench benchmark --parts --count-teacher-forwards results/pocket_full \\
        --work-dir work_dirs
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from kdep_bench.benchmark import machine, report, teacher_passes
from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT


def parser() -> argparse.ArgumentParser:
    """The command line; no heavy import."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    p.add_argument(
        "--allow-busy", action="store_true", help="measure even if other work is running"
    )
    p.add_argument("--busy", dest="allow_busy", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    p.add_argument(
        "--out", type=Path, default=OUTPUT / "results/benchmark", help="default: results/benchmark"
    )
    p.add_argument(
        "--parts",
        nargs="*",
        choices=["steps", "memory"],
        default=["steps", "memory"],
        help="what to measure (default: both; none: only --against and --count-teacher-forwards)",
    )
    p.add_argument(
        "--against", choices=["lightly-train"], help="also train a student with this program"
    )
    p.add_argument(
        "--venv",
        type=Path,
        default=OUTPUT / ".venv-lightly",
        help="with --against: virtual environment of the program (default: .venv-lightly)",
    )
    p.add_argument(
        "--prepared",
        type=Path,
        help="with --against: a finished `prepare` stage of the pocket data",
    )
    p.add_argument(
        "--images",
        type=int,
        default=2048,
        help="with --against: training images (default: %(default)s)",
    )
    p.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="with --against: training epochs (default: %(default)s)",
    )
    p.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="with --against: seeds of the linear probe (default: %(default)s)",
    )
    p.add_argument(
        "--count-teacher-forwards",
        type=Path,
        metavar="RESULTS",
        help="count the teacher forward passes of a finished suite",
    )
    p.add_argument("--count", dest="count_teacher_forwards", type=Path, help=argparse.SUPPRESS)
    p.add_argument(
        "--work-dir",
        type=Path,
        default=OUTPUT / "work_dirs",
        help="with --count-teacher-forwards: its stage directories (default: work_dirs)",
    )
    return p


def measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Runs the selected measurements; returns their results by name.

    `root`: an empty folder for temporary data.

    Raises:
        KdepError: an argument is missing or wrong, other work is running on the machine, or it has
            a GPU and `--against` compares on the CPU.
    """
    measured: dict[str, Any] = {}
    if args.against and args.prepared is None:
        raise KdepError(
            "--against trains on the pocket data and needs --prepared",
            fix="add --prepared with the path of the `prepare` stage",
        )
    if args.count_teacher_forwards:
        measured["forwards"] = teacher_passes.count(args.count_teacher_forwards, args.work_dir)
    if not args.parts and not args.against:
        return measured
    busy = machine.busy_cores()
    if not args.quick and not args.allow_busy:
        machine.check_idle(busy)
    import torch

    from kdep_bench.benchmark import lightly, memory, steps
    from kdep_bench.engine.environment import device

    if args.against and torch.cuda.is_available():
        raise KdepError(
            "--against compares trainings on the CPU, but this process can use a GPU",
            fix="run it with CUDA_VISIBLE_DEVICES=''",
        )
    torch.set_num_threads(args.threads)
    measured["threads"] = args.threads
    if "steps" in args.parts:
        images, n_steps = (320, 1) if args.quick else (1024, 20)
        measured["steps"] = steps.measure(root, images, n_steps)
    if "memory" in args.parts:
        measured["memory"] = memory.measure(root, args.quick)
    if args.against:
        lightly.check(args.venv, args.prepared, args.images)
        measured["rival"] = lightly.measure(
            root, args.venv, args.prepared, args.images, args.epochs, args.threads, args.seeds
        )
    # After the measurements: `device` names a GPU only after CUDA was used.
    measured["device"] = device()
    measured_parts = [part for part in ("steps", "memory", "rival") if part in measured]
    if busy > machine.MAX_BUSY_CORES and not args.quick:
        measured["busy"] = dict.fromkeys(measured_parts, busy)
    return measured


def main(argv: list[str] | None = None) -> None:
    """Runs the command line: writes the report and prints it."""
    args = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(args, Path(folder))
        report.write({"quick": args.quick, **measured}, args.out)
    except KdepError as e:
        sys.exit(f"kdep-bench benchmark: {e}")
    print((args.out / "benchmark.md").read_text())


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

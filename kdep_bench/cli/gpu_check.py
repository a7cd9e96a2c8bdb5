"""Check that the project works on this machine's GPU, in at most eight minutes, without network.

    kdep-bench gpu-check                               # all checks; results/gpu_check/gpu.md
    kdep-bench gpu-check --device cpu --quick          # every check on a CPU; figures mean nothing
    kdep-bench gpu-check --only operators ranks        # only these checks
    kdep-bench gpu-check --pack DIR                    # write a folder for a machine without
                                                       # network; run there: bash DIR/run.sh

Exit codes: 0 all checks passed, 1 some failed, 2 this machine cannot be checked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.gpu_check.base import checks
from kdep_bench.gpu_check.run import BUDGET, RESULT, failed, run_checks
from kdep_bench.paths import OUTPUT, ROOT


def parser() -> argparse.ArgumentParser:
    """The command line; no heavy import."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    p.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    p.add_argument(
        "--budget",
        type=float,
        default=BUDGET,
        metavar="SECONDS",
        help="total time in seconds (default: %(default)g)",
    )
    p.add_argument(
        "--out", type=Path, default=OUTPUT / "results/gpu_check", help="default: results/gpu_check"
    )
    p.add_argument(
        "--only", nargs="+", metavar="CHECK", help=f"run only these checks: {', '.join(checks())}"
    )
    p.add_argument("--list", action="store_true", help="list the checks in the order they run")
    p.add_argument(
        "--pack", type=Path, metavar="DIR", help="write a folder for a machine without network"
    )
    # Internal: prints the GPUs as JSON. It runs in a separate process, because the checks are
    # forks of this process, which must not have initialised CUDA.
    p.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    start_time, args = time.monotonic(), parser().parse_args(argv)
    try:
        if args.look:
            return _detect()
        if args.list:
            for name, check in checks().items():
                print(f"{name:12s} {check.title} (at most {check.seconds:g} s)")
            return 0
        if args.pack is not None:
            from kdep_bench.gpu_check.pack import make_pack

            print(make_pack(args.pack, ROOT))
            return 0
        for name in args.only or ():
            if name not in checks():
                raise unknown_name("check", name, checks())
        if not args.budget > 0:
            raise KdepError(
                f"--budget is {args.budget:g}", expected="a positive number", fix="correct --budget"
            )
        gpus, machine = _machine(args.device, args.quick)
        result = run_checks(
            args.device,
            gpus,
            args.out,
            quick=args.quick,
            budget=args.budget,
            only=args.only,
            start_time=start_time,
            machine=machine,
        )
    except KdepError as e:
        print(f"kdep-bench gpu-check: {e}", file=sys.stderr)
        return 2
    n_failed = failed(result)
    print(f"{args.out / RESULT}: " + (f"{n_failed} fault(s)" if n_failed else "all checks passed"))
    return 1 if n_failed else 0


def _machine(device: str, quick: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Finds the GPUs to use.

    Returns:
        (device numbers, description of the machine for the report).

    Raises:
        KdepError: this machine cannot be checked.
    """
    import json

    from kdep_bench.openmmlab.environment import check_versions, versions

    check_versions("mmseg")
    packages = ("python", "torch", "torchvision", "mmengine", "numpy")
    machine = {name: version for name, version in versions().items() if name in packages}
    if device == "cpu":
        return (), machine
    detection = subprocess.run(
        [sys.executable, "-m", "kdep_bench.cli.gpu_check", "--look"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if detection.returncode == 2:
        raise KdepError(detection.stderr.removeprefix("kdep-bench gpu-check: ").strip())
    if detection.returncode:
        raise KdepError(
            f"the search for GPUs ended with exit code {detection.returncode}: "
            f"{detection.stderr.strip()[-300:]}",
            fix="check the driver with nvidia-smi",
        )
    detected = json.loads(detection.stdout.splitlines()[-1])
    return tuple(detected["use"]), machine | detected["machine"]


def _detect() -> int:
    """Prints, as JSON, the GPUs to use and a description of the machine for the report."""
    import json

    from kdep_bench.gpu_check.machine import detect, usable

    info = detect()
    gpus = usable(info)
    listing = ", ".join(
        f"{gpu['number']}: {gpu['name']}, {gpu['free_gib']:.0f} GiB free"
        + ("" if gpu["number"] in gpus else " (not used: too little free)")
        for gpu in info.gpus
    )
    machine = {"driver": str(info.driver), "CUDA of torch": str(info.built_for), "GPUs": listing}
    print(json.dumps({"use": gpus, "machine": machine}))
    return 0


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

#!/usr/bin/env python
"""Check this machine and a suite's requirements: versions, operators, GPUs, data sets, teachers.

python tools/doctor.py                             # only the machine
python tools/doctor.py --suite paper_r18           # also the suite's requirements
python tools/doctor.py --data coco voc --decode all
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 1 where there is a fault, 2 for a wrong argument."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--suite", action="append", default=[], help="also check this suite (name or config)"
    )
    p.add_argument("--data", nargs="+", default=[], metavar="SET", help="official sets to check")
    p.add_argument("--root", type=Path, help="folder of the official sets (default: $KDEP_DATA)")
    p.add_argument(
        "--decode",
        default="8",
        help="images to decode per folder of the official sets, or 'all' (default: 8); your own "
        "data is always decoded completely",
    )
    p.add_argument("--work-dir", type=Path, default=Path("work_dirs"), help="default: work_dirs")
    args = p.parse_args(argv)
    if args.decode != "all" and not args.decode.isdigit():
        p.error("--decode must be a number or 'all'")
    decode = None if args.decode == "all" else int(args.decode)

    from kdep_bench.cli import doctor
    from kdep_bench.errors import KdepError

    parts = [
        doctor.machine(args.work_dir),
        *(doctor.suite(s, decode, args.work_dir) for s in args.suite),
    ]
    if args.data:
        parts.append(doctor.official(args.data, args.root, decode))
    try:
        return int(doctor.report(chain.from_iterable(parts)) > 0)
    except KdepError as e:
        print(f"doctor: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)

"""Measures the pre-trainer against its bars; `--quick` only shows that every part runs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=Path, default=REPO / "results/benchmark")
    args = p.parse_args()
    import torch

    from kdep_bench.benchmark import memory, report, steps
    from kdep_bench.suite.worker import device

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "quick": args.quick,
            "device": device(),
            "threads": args.threads,
            "steps": steps.measure(
                Path(folder), 320 if args.quick else 1024, 1 if args.quick else 20
            ),
            "memory": memory.measure(Path(folder), args.quick),
        }
    report.write(found, args.out)
    print((args.out / "benchmark.md").read_text())


if __name__ == "__main__":
    from kdep_bench.console import leave

    leave(main)

#!/usr/bin/env python
"""Measure speed and memory of the pre-training code on an idle machine."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kdep_bench.console import run_command

    run_command("kdep_bench.cli.benchmark")

#!/usr/bin/env python
"""Unpack, convert and verify an official data set, or generate the built-in pocket data."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kdep_bench.console import run_command

    run_command("kdep_bench.cli.prepare_data")

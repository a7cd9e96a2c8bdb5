#!/usr/bin/env python
"""Search for a student and settings within size limits; `--help` lists the options."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kdep_bench.console import run_command

    run_command("kdep_bench.cli.search")

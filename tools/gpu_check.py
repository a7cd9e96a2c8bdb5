#!/usr/bin/env python
"""Check that the project works on this machine's GPU, in at most eight minutes, without network."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kdep_bench.console import run_command

    run_command("kdep_bench.cli.gpu_check")

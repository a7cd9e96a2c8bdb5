#!/usr/bin/env python
"""List the stages and cluster runs of a work dir with their sizes; delete unused ones."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kdep_bench.console import run_command

    run_command("kdep_bench.cli.work_dir")

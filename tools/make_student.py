#!/usr/bin/env python
"""Write a student config from a model name; finds and tests its tap, width and pyramid levels."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kdep_bench.console import run_command

    run_command("kdep_bench.cli.make_student")

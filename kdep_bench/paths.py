"""Paths of the package, its configs and its output folders, in a clone or installed from a wheel.

In a clone of the repository, configs and output are in the clone. If the project is installed from
a wheel, the configs are part of the package (`setup.py` copies them), and output is written to the
current folder.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # child processes need it on PYTHONPATH
_INSTALLED = PACKAGE / "_configs"
IS_INSTALLED = _INSTALLED.is_dir()
CONFIGS = _INSTALLED if IS_INSTALLED else ROOT / "configs"
# Default parent of the folders `work_dirs` and `results`.
OUTPUT = Path.cwd() if IS_INSTALLED else ROOT

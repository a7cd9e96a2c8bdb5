"""Paths of the package, its configs and its output folders, in a clone or installed from a wheel.

In a clone, everything is in the clone. Installed from a wheel, the configs are part of the package
(`setup.py` copies them), and output goes to the current folder.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # child processes need it on PYTHONPATH
_INSTALLED = PACKAGE / "_configs"
IS_INSTALLED = _INSTALLED.is_dir()
CONFIGS = _INSTALLED if IS_INSTALLED else ROOT / "configs"
# Contains `work_dirs` and `results` unless a command's arguments name other folders.
OUTPUT = Path.cwd() if IS_INSTALLED else ROOT

"""Imported once by the tests' fork server, so that each stage's process starts at once."""

import importlib
import os

from kdep_bench import ops

os.environ["OMP_NUM_THREADS"] = "1"
ops.install()
for toolkit in ("mmdet", "mmpretrain", "mmseg"):
    importlib.import_module(f"{toolkit}.apis")

"""The tests' fork server imports this module once, so that the process of a stage starts fast."""

import importlib
import os

from kdep_bench import ops

os.environ["OMP_NUM_THREADS"] = "1"
ops.install()
for toolkit in ("mmdet", "mmpretrain", "mmseg"):
    importlib.import_module(f"{toolkit}.apis")

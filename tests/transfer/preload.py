"""Imported once by the tests' fork server, so that each stage's process starts at once."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from kdep_bench import ops  # noqa: E402

ops.install()

import mmdet.apis  # noqa: E402
import mmpretrain.apis  # noqa: E402
import mmseg.apis  # noqa: E402, F401

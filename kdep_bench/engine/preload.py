"""Imported once by the fork server, so that every stage starts with the toolkits in memory.

Numbers of threads are set before torch is imported: a fork must not inherit running threads. GPUs
are hidden (`hide_gpus`): forks cannot use a CUDA driver that is initialised here.
"""

import os
import traceback

from kdep_bench.devices import hide_gpus

hide_gpus()
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

# The fork server ignores import errors; the worker writes this one into the stage's log.
FAILURE = ""


def _load() -> None:
    import gc
    import importlib

    import kdep_bench.engine.environment
    import kdep_bench.engine.worker
    import kdep_bench.ops
    from kdep_bench.openmmlab.environment import MODULES, without_multimodal

    kdep_bench.ops.install()
    without_multimodal()
    for name in (
        "torch",
        "torchvision",
        "kdep_bench.openmmlab",
        "mmengine.runner",
        "mmpretrain.models",
        "mmdet.apis",
        "mmseg.apis",
        *sorted({name for modules in MODULES.values() for name in modules}),
    ):
        importlib.import_module(name)
    kdep_bench.engine.environment.packages()
    # Nothing of this is freed before the server ends: exclude it from garbage collection, which
    # would also copy the memory pages in every fork.
    gc.freeze()


try:
    _load()
except Exception:
    FAILURE = traceback.format_exc()

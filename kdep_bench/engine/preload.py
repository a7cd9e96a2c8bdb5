"""Imported once by the fork server, so that every stage starts with the toolkits in memory.

The toolkits are torch, mmengine, mmpretrain, mmdet and mmseg. The thread counts are set to 1 before
torch is imported, because a fork must not inherit running threads. GPUs are hidden (`hide_gpus`),
because forks cannot use a CUDA driver that was initialised in their parent.
"""

import os
import traceback

from kdep_bench.devices import hide_gpus

hide_gpus()
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

# Traceback of a failed import. The fork server ignores it; the worker writes it to the stage's log.
FAILURE = ""


def _load() -> None:
    import gc
    import importlib

    import kdep_bench.engine.environment
    import kdep_bench.engine.worker
    import kdep_bench.ops
    from kdep_bench.openmmlab.environment import MODULES, skip_multimodal

    kdep_bench.ops.install()
    skip_multimodal()
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
    # The imported objects live until the server ends. Excluded from garbage collection, their
    # memory pages are not written to, so that forks keep sharing them.
    gc.freeze()


try:
    _load()
except Exception:
    FAILURE = traceback.format_exc()

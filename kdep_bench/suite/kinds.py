"""The stage kinds: for each its function, its version and its default resources.

No stage has the kind "synthesis". The stage that makes the images of a method (its `synthesis`) has
the kind "prepare", because it writes a pool, but the resources and source paths of "synthesis".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_HOUR = 3600.0


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    Attributes:
        function: 'package.module:function', called as run(spec, inputs, out, progress).
        version: raised by hand when the function's results change for the same spec; part of the
            stage id, so that every stage of the kind and all that depend on it run again.
        resumable: whether the function continues from the files of an interrupted attempt;
            otherwise these are removed first.
        cpus: CPU cores (threads), unless the suite sets them; 0: all.
        gpu: whether the stage uses a GPU, if the machine has any.
        timeout: seconds after which the stage is stopped, unless the suite sets them.
        cost: estimated seconds, used until times of similar stages are measured.
        memory: MiB per process requested from a cluster, unless the suite sets them. (The largest
            stage of the suite `pocket` uses at most 1.7 GiB.)
        ddp: whether the function can run as several processes (torchrun). Their number changes
            results only by rounding and, in transfers, by the random draws of augmentations.
        source_paths: files and folders below kdep_bench/ whose source code the stage runs. If that
            has changed since a stage finished, the change is reported, but the stage is not rerun.
    """

    function: str
    version: int = 1
    resumable: bool = False
    cpus: int = 1
    gpu: bool = False
    timeout: float = 12 * _HOUR
    cost: float = 60.0
    memory: int = 4096
    ddp: bool = False
    source_paths: tuple[str, ...] = field(default=())


# Source paths that several kinds have.
_MM = ("openmmlab", "ops")
_SAMPLES = ("data/views.py", "data/fractions.py")

KINDS: Mapping[str, StageKind] = {
    "prepare": StageKind(
        "kdep_bench.data.pocket:prepare", 1, cpus=0, cost=120, source_paths=("data",)
    ),
    "synthesis": StageKind(
        "kdep_bench.features.synthetic_pool:prepare",
        cpus=0,
        gpu=True,
        cost=300,
        source_paths=(
            "features/synthetic_pool.py",
            "features/few_shot.py",
            "features/cache_check.py",
            "networks/conditional_vae.py",
            "teachers",
            "data",
        ),
    ),
    "views": StageKind("kdep_bench.data.views:run", 1, cost=20, source_paths=("data/views.py",)),
    "cache": StageKind(
        "kdep_bench.features.cache:run",
        1,
        resumable=True,
        gpu=True,
        cost=400,
        source_paths=(
            "features/cache.py",
            "features/cache_check.py",
            "features/cache_read.py",
            "teachers",
            "networks",
            "data/views.py",
        ),
    ),
    "align": StageKind(
        "kdep_bench.features.align:run",
        1,
        cost=20,
        source_paths=("features", *_SAMPLES),
    ),
    "pretrain": StageKind(
        "kdep_bench.pretrain.stage:run",
        1,
        resumable=True,
        gpu=True,
        ddp=True,
        timeout=72 * _HOUR,
        cost=600,
        source_paths=(
            "pretrain",
            "objectives",
            "augments",
            "schedules",
            "students",
            "teachers",
            "networks",
            "features",
            *_SAMPLES,
            *_MM,
        ),
    ),
    "export": StageKind(
        "kdep_bench.transfer.export:run",
        1,
        cost=5,
        source_paths=(
            "transfer/export.py",
            "transfer/model_card.py",
            "students",
            "networks",
            "pretrain",
            *_MM,
        ),
    ),
    "transfer": StageKind(
        "kdep_bench.transfer.stage:run",
        1,
        gpu=True,
        ddp=True,
        timeout=72 * _HOUR,
        cost=120,
        source_paths=(
            "transfer",
            "students",
            "networks",
            "objectives",
            "pretrain/parallel.py",
            *_MM,
        ),
    ),
    "features": StageKind(
        "kdep_bench.probes.extract:run",
        1,
        gpu=True,
        cost=20,
        source_paths=("probes/extract.py", "students", "networks", *_SAMPLES, *_MM),
    ),
    "probe": StageKind(
        "kdep_bench.probes.stage:run",
        1,
        gpu=True,
        cost=20,
        source_paths=("probes", "students", "networks", *_MM),
    ),
}

"""For the checks: finished stages on random images, and the pre-training of a method on them."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from kdep_bench.data import views as views_stage
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.data.views import open_views
from kdep_bench.devices import compute_device
from kdep_bench.features import align, cache
from kdep_bench.files import write_json
from kdep_bench.gpu_check.base import Json, Setting
from kdep_bench.objectives.base import demands
from kdep_bench.pretrain import assemble
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.pretrain.stream import ViewStream
from kdep_bench.pretrain.teaching import open_teacher_source
from kdep_bench.suite.config import resolve

CLASSES = 1000
STUDENT = "resnet18_w32"
# Teacher outputs that the methods of configs/methods/ read from the cache, in addition to the
# pooled feature, from which the logits are computed.
ALL_OUTPUTS = ("maps.s4", "maps.s8", "maps.s16", "maps.s32", "probabilities.10")


def silent(*_: Any, **__: Any) -> None:
    """A progress function that reports nothing."""


def make_stages(
    root: Path,
    images: int,
    student: Json,
    teacher: Json,
    views: int = 2,
    outputs: tuple[str, ...] = (),
) -> dict[str, Path]:
    """Runs the stages views, cache and align on random 160 px images with random labels.

    Args:
        root: folder for the stages.
        images: number of images.
        student, teacher: their configs.
        views: views per image.
        outputs: teacher outputs in the cache, in addition to the pooled feature.

    Returns:
        stage kind -> folder, including "prepare".
    """
    rng, pool = np.random.default_rng(0), root / "prepare/data/pool"
    (pool / "images").mkdir(parents=True)
    for i in range(images):
        small = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(pool / f"images/{i:06d}.png"), cv2.resize(small, (160, 160)))
    labels = {f"{i:06d}.png": int(rng.integers(CLASSES)) for i in range(images)}
    write_json(
        pool / "labels.json", {"classes": [str(k) for k in range(CLASSES)], "labels": labels}
    )
    recipe = dict(
        views=views, px=student["input_px"], seed=0, scale=[0.4, 1.0], ratio=[0.75, 4 / 3]
    )
    stage_folders = {"prepare": root / "prepare"}
    align_spec = dict(width=student["width"], share=1.0, share_seed=0, align={"type": "svd"})
    for kind, run, spec in (
        ("views", views_stage.run, recipe),
        ("cache", cache.run, {"teacher": teacher, "outputs": list(outputs)}),
        ("align", align.run, align_spec),
    ):
        (root / kind).mkdir()
        run(spec, stage_folders, root / kind, silent)
        stage_folders[kind] = root / kind
    return stage_folders


def pocket_teacher(quick: bool) -> Json:
    """The config of the pocket suites' teacher; in a quick run with a smaller input."""
    teacher = resolve("teacher", "efficientnet_lite0")
    teacher = {k: v for k, v in teacher.items() if k not in ("card", "about", "trained_on")}
    return teacher | {"input_px": 64} if quick else teacher


def vision_transformer() -> Json:
    """The config of a ViT-T with random weights, a teacher for methods that read attention."""
    return dict(
        type="kdep_bench.teachers.timm_models.Timm",
        name="vit_t",
        model="vit_tiny_patch16_224",
        input_px=64,
        weights="random",
        args=dict(dynamic_img_size=True),
        mean=MEAN,
        std=STD,
    )


def shared_stages(setting: Setting) -> dict[str, Path]:
    """The stages for the pocket student and teacher: stage kind -> folder.

    The first check that calls this function runs the stages; other checks wait and reuse them.
    """
    root = setting.shared
    with open(root.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            partial = setting.folder / "stages"
            student, teacher = resolve("student", STUDENT), pocket_teacher(setting.quick)
            # The SVD needs more samples (2 views per image) than the student's 256 channels.
            make_stages(partial, 160 if setting.quick else 512, student, teacher, 2, ALL_OUTPUTS)
            partial.replace(root)
    return {kind: root / kind for kind in ("prepare", "views", "cache", "align")}


def pretrain_spec(method: Json, student: Json, epochs: float, batch: int, **budget: Any) -> Json:
    """The spec of a `pretrain` stage; `budget` overrides entries of the budget."""
    defaults = dict(
        optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4), precision="float32"
    )
    return {
        "student": student,
        "method": {"labels_used": False, "transform": None, **method},
        "share": 1.0,
        "share_seed": 0,
        "seed": 0,
        "budget": {"epochs": epochs, "batch": batch, **defaults, **budget},
        **({"roles": list(method["teachers"])} if "teachers" in method else {}),
    }


def build(
    spec: Json, stage_folders: Mapping[str, Path], out: Path, **model: Any
) -> tuple[Distiller, Callable[[int], dict[str, Any]]]:
    """Builds the model and the data of a pre-training.

    Args:
        spec: spec of the `pretrain` stage.
        stage_folders: stage kind -> folder.
        out: folder of the stage.
        model: other arguments of Distiller.

    Returns:
        (model on this process's device, function that returns the k-th batch).
    """
    method, batch = spec["method"], spec["budget"]["batch"]
    requirements = demands(method["objective"])
    inputs = dict(stage_folders)
    opened = open_views(stage_folders["views"], stage_folders["prepare"])
    source = open_teacher_source(requirements.needs, spec, inputs, opened)
    objective, target, _ = assemble.objective_config(spec, inputs, source, out)
    labels = stage_folders["prepare"] / "data/pool/labels.json"
    data = ViewStream(
        stage_folders["views"],
        length=10**9,  # more samples than a check reads
        share=1.0,
        share_seed=0,
        seed=0,
        labels=str(labels) if method["labels_used"] else None,
        together="views" in requirements.needs,
        **source.stream,
    )
    torch.manual_seed(0)
    net = Distiller(
        spec["student"],
        objective,
        target,
        precision=spec["budget"]["precision"],
        maps=requirements.pyramid,
        pre_activation_levels=sorted(requirements.pre_activation_levels),
        teacher=source.model,
        roles=spec.get("roles", ()),
        **model,
    )
    net.train().to(compute_device())
    return net, lambda k: data.__getitems__(list(range(k * batch, (k + 1) * batch)))


def on_device(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with all tensors, also in nested mappings, on this process's device."""
    device = compute_device()
    return {k: on_device(v) if isinstance(v, Mapping) else v.to(device) for k, v in batch.items()}


def total_loss(net: Distiller, batch: Mapping[str, Any]) -> torch.Tensor:
    """The summed loss of a batch on the device, a scalar."""
    return torch.stack(list(net(**batch, mode="loss").values())).sum()

"""Comparison with lightly-train: training speed, and the downstream score of the same student.

Both use the same teacher, student, input sizes, images, epochs, batch, precision, threads and
memory allocator. Each uses its default loss, augmentation, optimiser and schedule. The time of
kdep_bench includes the stages views, cache and align.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from kdep_bench import openmmlab
from kdep_bench.allocator import keep_freed_memory
from kdep_bench.benchmark.steps import BATCH, silent
from kdep_bench.data import views
from kdep_bench.errors import KdepError
from kdep_bench.features import align, cache
from kdep_bench.files import read_strict, write_json
from kdep_bench.paths import ROOT
from kdep_bench.pretrain import checkpoint, stage
from kdep_bench.registry import build
from kdep_bench.suite.config import load_config, resolve
from kdep_bench.transfer import export

POOL = Path("data/pool/images")  # the pre-training images, inside the folder of stage `prepare`
VIEWS = 2  # views per image


def check(venv: Path, prepared: Path, images: int) -> None:
    """Checks the environment of lightly-train, the data and the number of images.

    Raises:
        KdepError: the environment or the data do not exist, or `images` is more than their number
            or not a multiple of BATCH.
    """
    if not (venv / "bin/python").exists():
        raise KdepError(
            f"{venv} is not a virtual environment with lightly-train", fix="run: make lightly"
        )
    if not (prepared / POOL).is_dir():
        raise KdepError(
            f"{prepared} has no folder {POOL}",
            expected="a finished `prepare` stage of `pocket`",
            fix="run: kdep-bench run pocket --only prepare, and give its folder "
            "work_dirs/prepare-pocket-... as --prepared",
        )
    n_images = sum(p.is_file() for p in (prepared / POOL).rglob("*"))
    if images > n_images or images % BATCH:
        raise KdepError(
            f"--images is {images}, and {prepared / POOL} has {n_images} images",
            expected=f"a multiple of {BATCH}, at most {n_images}",
            fix="correct --images",
        )


def link_images(prepared: Path, images: int, root: Path) -> Path:
    """Makes the folder `root` of a `prepare` stage with links to `images` images of the pool.

    They are evenly spaced in the list of all images.
    """
    files = sorted(p for p in (prepared / POOL).rglob("*") if p.is_file())
    for path in (files[i * len(files) // images] for i in range(images)):
        link = root / POOL / path.relative_to(prepared / POOL)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return root


def measure(
    root: Path,
    venv: Path,
    prepared: Path,
    images: int,
    epochs: int,
    threads: int,
    seeds: int = 3,
) -> dict[str, Any]:
    """Trains with kdep_bench and with lightly-train, and scores both and the untrained student.

    The score is that of the pocket suite's linear probe.

    Args:
        root: empty folder for the files.
        venv: virtual environment with lightly-train.
        prepared: a finished `prepare` stage of the pocket data.
        images, epochs, threads: see the options of tools/benchmark.py.
        seeds: number of transfer seeds.

    Raises:
        KdepError: lightly-train fails, or the two train for different numbers of steps.
    """
    keep_freed_memory()
    openmmlab.setup("mmpretrain")
    student, task = resolve("student", "resnet18_w32"), resolve("task", "pocket_probe")
    teacher = {k: v for k, v in resolve("teacher", "efficientnet_lite0").items() if k != "card"}
    pool = link_images(prepared, images, root / "prepare")
    kdep_run = train(root / "ours", pool, student, teacher, epochs)
    lightly_result = train_lightly(root / "other", venv, pool, student, teacher, epochs, threads)
    if lightly_result["steps"] != kdep_run["steps"]:
        raise KdepError(
            f"lightly-train trained for {lightly_result['steps']} steps and kdep_bench for "
            f"{kdep_run['steps']}",
            expected="the same number of steps",
            fix="use an environment with the lightly-train version of `make lightly`",
        )
    spec = {"student": student, "method": {"name": "scratch", "labels_used": False}, "seed": 0}
    (root / "scratch").mkdir()
    checkpoint.write_untrained(spec, root / "scratch")
    files = {
        "kdep": export_backbone(root / "ours", student),
        "lightly-train": root / "other/backbone.pth",
        "scratch": export_backbone(root / "scratch", student),
    }
    return {
        "rival": "lightly-train",
        "version": lightly_result.pop("version"),
        "images": images,
        "epochs": epochs,
        "threads": threads,
        "ours": kdep_run,
        "other": lightly_result,
        "task": task["name"],
        "seeds": seeds,
        "scores": {
            name: score(task, prepared, student, file, root / f"probe-{name}", seeds)
            for name, file in files.items()
        },
    }


def train(
    root: Path, pool: Path, student: dict[str, Any], teacher: dict[str, Any], epochs: int
) -> dict[str, float]:
    """Runs the stages views, cache, align and pretrain in `root`.

    Returns:
        `seconds` and `cpu_s` of all stages, `train_s` of the training steps, and `steps`.
    """
    suite, method = load_config("suite", "pocket"), resolve("method", "kdep")
    fraction, stage_folders = {"share": 1.0, "share_seed": 0}, {"prepare": pool}
    recipe = dict(views=VIEWS, px=student["input_px"], seed=0, ratio=[0.75, 4 / 3])
    budget = {**suite["budget"], "epochs": epochs, "batch": BATCH, "precision": "float32"}
    outputs: dict[str, Any] = {}
    start, cpu = time.perf_counter(), time.process_time()
    for kind, run, spec in (
        ("views", views.run, {**recipe, "scale": suite["views"]["scale"]}),
        ("cache", cache.run, {"teacher": teacher}),
        ("align", align.run, {**fraction, "width": student["width"], "align": method["align"]}),
        (
            "pretrain",
            stage.run,
            {**fraction, "seed": 0, "student": student, "method": method, "budget": budget},
        ),
    ):
        (root / kind).mkdir(parents=True)
        outputs = run(spec, stage_folders, root / kind, silent)
        stage_folders[kind] = root / kind
    return {
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "train_s": outputs["train_s"],
        "steps": outputs["steps"],
    }


def train_lightly(
    root: Path,
    venv: Path,
    pool: Path,
    student: dict[str, Any],
    teacher: dict[str, Any],
    epochs: int,
    threads: int,
) -> dict[str, Any]:
    """Runs `lightly_run` in the environment `venv`; returns its result.json.

    Raises:
        KdepError: it fails; the error has the end of its output.
    """
    root.mkdir()
    settings = {
        "student": student,
        "teacher": teacher,
        "data": str(pool / POOL),
        "epochs": epochs,
        "batch": BATCH,
        "threads": threads,
        "seed": 0,
    }
    file = root / "settings.json"
    write_json(file, settings)
    command = [venv / "bin/python", "-m", "kdep_bench.benchmark.lightly_run", file]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "LIGHTLY_TRAIN_CACHE_DIR": str(root / "cache"),
    }
    process = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if process.returncode:
        message = " ".join(process.stderr.split())[-400:]
        raise KdepError(
            f"lightly-train ended with exit code {process.returncode} ({message})",
            fix="read the message; `make lightly` installs the version that was tested",
        )
    return read_strict(root / "result.json")


def export_backbone(root: Path, student: dict[str, Any]) -> Path:
    """Exports the student that was trained in `root`; returns the file of the backbone."""
    source = root / "pretrain" if (root / "pretrain").is_dir() else root
    export.run({"student": student}, {"pretrain": source}, root, silent)
    return root / "backbone.pth"


def score(
    task: dict[str, Any],
    prepared: Path,
    student: dict[str, Any],
    backbone: Path,
    out: Path,
    seeds: int,
) -> float:
    """Mean score of a backbone over `seeds` transfers, between 0 and 1.

    Args:
        task, student: configs.
        prepared: the `prepare` stage with the task's data.
        backbone: file of the backbone.
        out: folder for the transfers, which is removed at the end.
        seeds: number of transfers.
    """
    run: Callable[..., dict[str, Any]] = build(task).run
    values = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        folder = out / str(seed)
        folder.mkdir(parents=True)
        outputs = run(prepared / "data", student, backbone, seed, folder, silent)
        values.append(outputs["value"])
    shutil.rmtree(out)
    return mean(values)

"""The same student trained here and by another product: throughput, and the score downstream.

Same teacher and its input size, student and its input size, images, epochs, batch, precision,
threads and allocator. Each side keeps its own loss, augmentation, optimiser and schedule. Ours pays
for its views, its cache and its alignment.
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
from kdep_bench.pretrain import checkpoint, stage
from kdep_bench.registry import build
from kdep_bench.suite.config import REPO, load_config, resolve
from kdep_bench.transfer import export

POOL = Path("data/pool/images")
VIEWS = 2


def check(venv: Path, prepared: Path, images: int) -> None:
    """KdepError where the other environment, the data or enough images are not there, or the
    images do not fill whole batches."""
    if not (venv / "bin/python").exists():
        raise KdepError(
            f"{venv} is not a virtual environment with lightly-train", fix="run: make lightly"
        )
    if not (prepared / POOL).is_dir():
        raise KdepError(
            f"{prepared} has no folder {POOL}", expected="a finished `prepare` stage of `pocket`"
        )
    here = sum(p.is_file() for p in (prepared / POOL).rglob("*"))
    if images > here or images % BATCH:
        raise KdepError(
            f"the benchmark would use {images} of the pool's {here} images",
            expected=f"a multiple of {BATCH}, at most {here}",
        )


def some_of(prepared: Path, images: int, root: Path) -> Path:
    """A `prepare` stage with links to `images` images of the pool, evenly picked."""
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
    """Trains both, and scores both and the untrained student by the pocket linear probe."""
    keep_freed_memory()
    openmmlab.setup("mmpretrain")
    student, task = resolve("student", "resnet18_w32"), resolve("task", "pocket_probe")
    teacher = {k: v for k, v in resolve("teacher", "efficientnet_lite0").items() if k != "card"}
    pool = some_of(prepared, images, root / "prepare")
    ours = train(root / "ours", pool, student, teacher, epochs)
    other = train_other(root / "other", venv, pool, student, teacher, epochs, threads)
    if other["steps"] != ours["steps"]:
        raise KdepError(
            f"lightly-train trained for {other['steps']} steps and kdep_bench for {ours['steps']}",
            expected="the same number of steps",
        )
    spec = {"student": student, "method": {"name": "scratch", "labels_used": False}, "seed": 0}
    (root / "scratch").mkdir()
    checkpoint.untrained(spec, root / "scratch")
    files = {
        "kdep": exported(root / "ours", student),
        "lightly-train": root / "other/backbone.pth",
        "scratch": exported(root / "scratch", student),
    }
    return {
        "rival": "lightly-train",
        "version": other.pop("version"),
        "images": images,
        "epochs": epochs,
        "threads": threads,
        "ours": ours,
        "other": other,
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
    """Our chain by its real stages; `seconds` and `cpu_s` of all of it, `train_s` of its steps."""
    suite, method = load_config("suite", "pocket"), resolve("method", "kdep")
    share, done = {"share": 1.0, "share_seed": 0}, {"prepare": pool}
    recipe = dict(views=VIEWS, px=student["input_px"], seed=0, ratio=[0.75, 4 / 3])
    budget = {**suite["budget"], "epochs": epochs, "batch": BATCH, "precision": "float32"}
    told: dict[str, Any] = {}
    start, cpu = time.perf_counter(), time.process_time()
    for kind, run, spec in (
        ("views", views.run, {**recipe, "scale": suite["views"]["scale"]}),
        ("cache", cache.run, {"teacher": teacher}),
        ("align", align.run, {**share, "width": student["width"], "align": method["align"]}),
        (
            "pretrain",
            stage.run,
            {**share, "seed": 0, "student": student, "method": method, "budget": budget},
        ),
    ):
        (root / kind).mkdir(parents=True)
        told = run(spec, done, root / kind, silent)
        done[kind] = root / kind
    return {
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "train_s": told["train_s"],
        "steps": told["steps"],
    }


def train_other(
    root: Path,
    venv: Path,
    pool: Path,
    student: dict[str, Any],
    teacher: dict[str, Any],
    epochs: int,
    threads: int,
) -> dict[str, Any]:
    """lightly_arm's result; KdepError with the end of its log where it fails."""
    root.mkdir()
    order = {
        "student": student,
        "teacher": teacher,
        "data": str(pool / POOL),
        "epochs": epochs,
        "batch": BATCH,
        "threads": threads,
        "seed": 0,
    }
    write_json(root / "order.json", order)
    command = [venv / "bin/python", "-m", "kdep_bench.benchmark.lightly_arm", root / "order.json"]
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    told = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    told |= {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "LIGHTLY_TRAIN_CACHE_DIR": str(root / "cache")}
    ran = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True)
    if ran.returncode:
        end = " ".join(ran.stderr.split())[-400:]
        raise KdepError(f"lightly-train ended with exit code {ran.returncode} ({end})")
    return read_strict(root / "result.json")


def exported(root: Path, student: dict[str, Any]) -> Path:
    """The backbone of `root`'s student.pth, by the export stage."""
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
    """Mean of the task's metric over seeds."""
    run: Callable[..., dict[str, Any]] = build(task).run
    values = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        place = out / str(seed)
        place.mkdir(parents=True)
        said = run(prepared / "data", student, backbone, seed, place, silent)
        values.append(said["value"])
    shutil.rmtree(out)
    return mean(values)

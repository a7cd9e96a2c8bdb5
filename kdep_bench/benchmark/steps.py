"""Times of a pre-training step, for several kinds of training.

The kinds are: KDEP with a filled cache ("kdep"), the student alone ("student"), KDEP with a live
teacher, which runs in every step ("live"), a loop as in the paper, with a live teacher and new
random crops ("paper"), and KDEP on feature maps that are stored as float16 ("kdep_maps") or as int8
("kdep_maps_int8"). All run in one process on the same images, a few steps of each in turn, so that
other work on the machine affects all of them equally.
The results are medians over rounds. If this process can use a GPU, the models run there; images are
read on the CPU, and their copy to the GPU is part of the step. Freed memory is kept, as in every
stage (kdep_bench/allocator.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from kdep_bench import openmmlab
from kdep_bench.allocator import keep_freed_memory
from kdep_bench.data import views as views_stage
from kdep_bench.data.views import Views, draw_recipe, open_views, read_rgb, render
from kdep_bench.devices import compute_device, synchronise
from kdep_bench.features import align, cache
from kdep_bench.features.cache_check import exact_float32
from kdep_bench.objectives.base import Context, Objective, demands
from kdep_bench.pretrain import assemble
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.pretrain.stream import ViewStream, already_batched
from kdep_bench.pretrain.teaching import open_teacher_source
from kdep_bench.suite.config import resolve
from kdep_bench.teachers.base import build_teacher

BATCH = 64
# Name of a trainer of KDEP on feature maps -> kind of the maps in its teacher cache.
MAP_CACHES = {"kdep_maps": "maps", "kdep_maps_int8": "int8_maps"}


class StudentAlone(Objective):
    """A minimal loss on the student's feature, for training steps without a teacher."""

    needs = frozenset()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Mean square of the feature of each image, [B]."""
        return {"size": ctx.pre_activation.square().mean(1)}


def silent(*_: Any) -> None:
    """A progress function that reports nothing."""


def make_stages(root: Path, images: int, student: dict[str, Any], teacher: dict[str, Any]):
    """Runs the stages views, caches and align on `images` random JPEG files of 160 px.

    Returns:
        stage -> folder, including "prepare".
    """
    rng, pool = np.random.default_rng(0), root / "prepare/data/pool/images/00"
    pool.mkdir(parents=True)
    for i in range(images):
        small = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(pool / f"{i:06d}.jpg"), cv2.resize(small, (160, 160)))
    stage_folders = {"prepare": root / "prepare"}
    recipe = dict(views=1, px=student["input_px"], seed=0, scale=[0.4, 1.0], ratio=[0.75, 4 / 3])
    for kind, run, spec in (
        ("views", views_stage.run, recipe),
        ("cache", cache.run, {"teacher": teacher}),
        *(
            (f"cache.{kind}", cache.run, {"teacher": teacher, "outputs": map_outputs(kind)})
            for kind in MAP_CACHES.values()
        ),
        (
            "align",
            align.run,
            dict(width=student["width"], share=1.0, share_seed=0, align={"type": "svd"}),
        ),
    ):
        (root / kind).mkdir()
        run(spec, stage_folders, root / kind, silent)
        stage_folders[kind] = root / kind
    return stage_folders


def map_outputs(kind: str) -> list[str]:
    """Outputs of a cache with the maps that KDEP on maps reads; `kind`: "maps" or "int8_maps"."""
    levels = resolve("method", "kdep_maps")["objective"]["levels"]
    return sorted(f"{kind}.{teacher_map}" for teacher_map in levels.values())


class StepTime(NamedTuple):
    """Seconds of one step.

    Attributes:
        wait: time until its batch was loaded.
        work: time of computing.
        cpu: CPU time of computing.
    """

    wait: float
    work: float
    cpu: float


def time_step(load: Callable[[], Any], work: Callable[[Any], Any]) -> StepTime:
    """Measures the time of `work(load())`; the GPU is synchronised before a clock is read."""
    synchronise()
    start = time.perf_counter()
    batch = load()
    synchronise()
    loaded, cpu = time.perf_counter(), time.process_time()
    work(batch)
    synchronise()
    return StepTime(loaded - start, time.perf_counter() - loaded, time.process_time() - cpu)


class Trainer:
    """A model with its optimiser and data.

    Args:
        load: function that loads the k-th batch.
        model: the model.
    """

    def __init__(self, load: Callable[[int], Any], model: Distiller) -> None:
        self.load, self.model = load, model
        model.train().to(compute_device())
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        self.optimizer = OptimWrapper(sgd)

    def step(self, batch: Any) -> None:
        """One optimiser step."""
        self.model.train_step(batch, self.optimizer)

    def timed_step(self, k: int) -> StepTime:
        """Loads batch `k` and takes a step on it; returns the times."""
        return time_step(lambda: self.load(k), self.step)


def waiting_fraction(
    trainer: Trainer, data: ViewStream, workers: int, steps: int, first: int = 8
) -> float:
    """Fraction of the time that `trainer` waits for a loader with `workers` processes.

    It is measured over `steps` steps. The `first` steps before them are not counted, because the
    workers start and fill their queues (2 batches each) during these.
    """
    order, collate = range(BATCH * (first + steps)), cast("Any", already_batched)
    loader = DataLoader(
        data,
        BATCH,
        sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=compute_device().type == "cuda",
    )
    batches = iter(loader)
    times = [time_step(lambda: next(batches), trainer.step) for _ in range(first + steps)][first:]
    return sum(t.wait for t in times) / sum(t.wait + t.work for t in times)


def measure(
    root: Path, images: int, rounds: int, each: int = 2, px: int | None = None
) -> dict[str, Any]:
    """Measures the step time of every training, with student and teacher of the pocket suites.

    Args:
        root: empty folder for the stages.
        images: number of random images.
        rounds: number of measured rounds.
        each: steps of each trainer per round.
        px: input side of student and teacher in pixels; None: as in their configs.

    Returns:
        medians in seconds per step of BATCH images, their ratios, and lower bounds of a step.
    """
    keep_freed_memory()
    openmmlab.setup("mmpretrain")
    setup = _Setup.prepared(root, images, px)
    times = _interleaved(setup, rounds, each)
    wait = {name: median(t.wait for t in measured) for name, measured in times.items()}
    step = {name: median(t.work for t in measured) for name, measured in times.items()}
    total = {name: median(t.wait + t.work for t in measured) for name, measured in times.items()}
    cpu = {name: median(t.cpu for t in measured) for name, measured in times.items()}
    workers = 2
    worker_wait = waiting_fraction(
        setup.trainers["kdep"], setup.cached_views, workers, rounds * each
    )
    return {
        "batch": BATCH,
        "rounds": rounds,
        "wait_s": wait,
        "step_s": step,
        "cpu_s": cpu,
        "floors": floors(setup.student, setup.teacher),
        "flops_per_s": peak_throughput(),
        "ratios": {
            "warm-cache step / student-only step": total["kdep"] / total["student"],
            "live step / (student step + teacher forward)": step["live"]
            / (step["student"] + step["teacher"]),
            "data wait, share of a warm-cache step": wait["kdep"] / total["kdep"],
            f"data wait with {workers} workers, share of a warm-cache step": worker_wait,
            "cache read, share of a student step": (wait["kdep"] - wait["student"])
            / total["student"],
            "throughput against the paper's live loop": total["paper"] / total["kdep"],
            "step of KDEP on maps / KDEP step": total["kdep_maps"] / total["kdep"],
            "step of KDEP on int8 maps / KDEP step": total["kdep_maps_int8"] / total["kdep"],
        },
    }


class _Setup(NamedTuple):
    """Configs of student and teacher, and the trainers by name.

    `cached_views`: the images and teacher features of the trainer "kdep".
    """

    student: dict[str, Any]
    teacher: dict[str, Any]
    trainers: dict[str, Trainer]
    cached_views: ViewStream

    @classmethod
    def prepared(cls, root: Path, images: int, px: int | None) -> _Setup:
        """Runs the stages on `images` random images, and makes the trainers.

        They are "student", "kdep" (with the cache), those of MAP_CACHES, "live" (a teacher forward
        pass in every step) and "paper" (as "live", with fresh crops).
        """
        student = resolve("student", "resnet18_w32")
        teacher = {k: v for k, v in resolve("teacher", "efficientnet_lite0").items() if k != "card"}
        if px is not None:
            student, teacher = {**student, "input_px": px}, {**teacher, "input_px": px}
        method = {"labels_used": False, **resolve("method", "kdep")}
        stage_folders = make_stages(root, images, student, teacher)
        spec = dict(student=student, method=method, share=1.0, share_seed=0, seed=0)
        spec["budget"] = dict(epochs=1, batch=BATCH)
        opened = open_views(stage_folders["views"], stage_folders["prepare"])
        source = open_teacher_source(frozenset({"target"}), spec, stage_folders, opened)
        objective, target, _ = assemble.objective_config(spec, stage_folders, source, root)
        live = {"live": teacher}

        def views(**options: Any) -> ViewStream:
            return ViewStream(stage_folders["views"], 10**9, 1.0, 0, 0, **options)

        live_views = views(pool=str(stage_folders["prepare"]), teacher_px=teacher["input_px"])
        trainers = {
            "student": Trainer(
                _batches(views()), Distiller(student, {"type": f"{__name__}.StudentAlone"})
            ),
            "kdep": Trainer(
                _batches(views(**source.stream)),
                Distiller(student, objective, target, teacher=source.model),
            ),
            **{
                name: _from_maps(
                    root / name,
                    spec,
                    stage_folders | {"cache": stage_folders[f"cache.{kind}"]},
                    views,
                )
                for name, kind in MAP_CACHES.items()
            },
            "live": Trainer(
                _batches(live_views), Distiller(student, objective, target, teacher=live)
            ),
            "paper": Trainer(
                _fresh_crops(opened, student["input_px"], teacher["input_px"]),
                Distiller(student, objective, target, teacher=live),
            ),
        }
        return cls(student, teacher, trainers, views(**source.stream))


def _from_maps(
    out: Path,
    spec: dict[str, Any],
    inputs: dict[str, Path],
    views: Callable[..., ViewStream],
) -> Trainer:
    """The trainer of KDEP on maps, with the maps in the cache of `inputs`."""
    out.mkdir()
    spec = spec | {"method": {"labels_used": False, **resolve("method", "kdep_maps")}}
    required = demands(spec["method"]["objective"])
    source = open_teacher_source(
        required.needs, spec, inputs, open_views(inputs["views"], inputs["prepare"])
    )
    objective, _, _ = assemble.objective_config(spec, inputs, source, out)
    model = Distiller(spec["student"], objective, teacher=source.model, maps=required.pyramid)
    return Trainer(_batches(views(**source.stream)), model)


def _batches(data: ViewStream) -> Callable[[int], Any]:
    """Function that returns the k-th batch of the stored views."""
    return lambda k: data.__getitems__(list(range(k * BATCH, (k + 1) * BATCH)))


def _fresh_crops(opened: Views, px: int, teacher_px: int) -> Callable[[int], dict[str, Tensor]]:
    """Function that loads the k-th batch of the paper's loop.

    Images are decoded, randomly cropped and flipped, at the sizes of student and teacher; uint8
    [BATCH, 3, px, px] and [BATCH, 3, teacher_px, teacher_px].
    """

    def load(k: int) -> dict[str, Tensor]:
        box, flip = draw_recipe(BATCH, 1, k, (0.4, 1.0), (0.75, 4 / 3))
        indices = np.random.default_rng(k).integers(0, len(opened.files), BATCH)
        images = [read_rgb(opened.root / opened.files[i]) for i in indices]
        out = {}
        for name, side in (("images", px), ("teacher_images", teacher_px)):
            crops = [render(image, box[i], bool(flip[i]), side) for i, image in enumerate(images)]
            out[name] = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return out

    return load


def _interleaved(setup: _Setup, rounds: int, each: int) -> dict[str, list[StepTime]]:
    """Measures `rounds` * `each` steps of every trainer, and forward passes of the teacher alone.

    In each round every trainer takes `each` steps in turn. A first round is not counted.

    Returns:
        name of the trainer, or "teacher" -> times.
    """
    teacher, device = build_teacher(setup.teacher).to(compute_device()), compute_device()

    @exact_float32()  # as in a training step
    def run_teacher(images: Tensor) -> None:
        teacher(images.to(device))

    times: dict[str, list[StepTime]] = {name: [] for name in [*setup.trainers, "teacher"]}
    load_live = setup.trainers["live"].load  # the teacher alone gets the images of the live steps
    for round_number in range(rounds + 1):
        batch_numbers = range(round_number * each, (round_number + 1) * each)
        measured = {
            name: [trainer.timed_step(k) for k in batch_numbers]
            for name, trainer in setup.trainers.items()
        }
        measured["teacher"] = [
            time_step(lambda k=k: load_live(k)["teacher_images"], run_teacher)
            for k in batch_numbers
        ]
        if round_number > 0:
            for name, step_times in measured.items():
                times[name] += step_times
    return times


def floors(student: dict[str, Any], teacher_config: dict[str, Any]) -> dict[str, float]:
    """Minimum work of a step on a batch, without overhead.

    Returns:
        FLOPs, counted by torch, of the student's forward and backward pass (three forward passes),
        of the teacher's forward pass and of the projection of the target; bytes of the images and
        of the teacher features.
    """
    from kdep_bench.networks.backbone import build_backbone

    net, teacher, px = build_backbone(student), build_teacher(teacher_config), student["input_px"]
    net.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as student_flops:
        net(torch.zeros(1, 3, px, px))
    with FlopCounterMode(display=False) as teacher_flops:
        teacher(torch.zeros(1, 3, teacher.input_px, teacher.input_px, dtype=torch.uint8))
    return {
        "student_step_flops": 3.0 * BATCH * student_flops.get_total_flops(),
        "teacher_forward_flops": float(BATCH * teacher_flops.get_total_flops()),
        "target_flops": 2.0 * BATCH * teacher.width * student["width"],
        "picture_bytes": 3.0 * BATCH * px * px,
        "feature_bytes": 2.0 * BATCH * teacher.width,
    }


def peak_throughput(side: int | None = None, times: int = 8) -> float:
    """Peak FLOP/s of this machine in float32 (not TF32): the fastest of `times` matrix products.

    `side`: rows and columns of the matrices; default: 1024 on a CPU, and 8192 on a GPU, where
    smaller products do not use all units.
    """
    device, best_seconds = compute_device(), float("inf")
    side = side or (1024 if device.type == "cpu" else 8192)
    matrix = torch.randn(side, side).to(device)
    for _ in range(times):
        synchronise()
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        synchronise()
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2.0 * side**3 / best_seconds

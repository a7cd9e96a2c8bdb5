"""What a pre-training step costs: warm cache, student alone, live teacher, the paper's own loop.

All arms run in one process on the same pictures, a few steps of each in turn, so that whatever
else the machine does meets all of them alike; medians over rounds. Freed memory is kept, as in
every stage (kdep_bench/allocator.py). Where this process may use a GPU, the models run there, the
pictures are read on the CPU as always, and their copy to the GPU is part of the step.
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
from kdep_bench.data.views import draw_recipe, open_views, read_rgb, render
from kdep_bench.devices import compute_device, synchronise
from kdep_bench.features import align, cache
from kdep_bench.features.cache_check import exact_float32
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.pretrain import assemble
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.pretrain.stream import ViewStream, already_batched
from kdep_bench.pretrain.teaching import teaching
from kdep_bench.suite.config import resolve
from kdep_bench.teachers.base import build_teacher

BATCH = 64


class StudentAlone(Objective):
    """The cheapest loss on the tap: a training step of the student with nothing to learn from."""

    needs = frozenset()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {"size": ctx.before.square().mean(1)}


def silent(*_: Any) -> None:
    pass


def make_stages(root: Path, images: int, student: dict[str, Any], teacher: dict[str, Any]):
    """prepare, views, cache and align of random blobs, 160 px JPEG files, by the real stages."""
    rng, pool = np.random.default_rng(0), root / "prepare/data/pool/images/00"
    pool.mkdir(parents=True)
    for i in range(images):
        small = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(pool / f"{i:06d}.jpg"), cv2.resize(small, (160, 160)))
    done = {"prepare": root / "prepare"}
    recipe = dict(views=1, px=student["input_px"], seed=0, scale=[0.4, 1.0], ratio=[0.75, 4 / 3])
    for kind, run, spec in (
        ("views", views_stage.run, recipe),
        ("cache", cache.run, {"teacher": teacher}),
        (
            "align",
            align.run,
            dict(width=student["width"], share=1.0, share_seed=0, align={"type": "svd"}),
        ),
    ):
        (root / kind).mkdir()
        run(spec, done, root / kind, silent)
        done[kind] = root / kind
    return done


class Once(NamedTuple):
    """One step, in seconds: waiting for its batch, working, and the processor time of that."""

    wait: float
    work: float
    cpu: float


def clocked(load: Callable[[], Any], work: Callable[[Any], Any]) -> Once:
    """`work(load())`, timed; a GPU has nothing left to do when a clock is read."""
    synchronise()
    a = time.perf_counter()
    batch = load()
    synchronise()
    b, cpu = time.perf_counter(), time.process_time()
    work(batch)
    synchronise()
    return Once(b - a, time.perf_counter() - b, time.process_time() - cpu)


class Arm:
    """One way to train: a loader of batches and a model that takes a step on them."""

    def __init__(self, load: Callable[[int], Any], model: Distiller) -> None:
        self.load, self.model = load, model
        model.train().to(compute_device())
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        self.optimizer = OptimWrapper(sgd)

    def step(self, batch: Any) -> None:
        self.model.train_step(batch, self.optimizer)

    def once(self, k: int) -> Once:
        return clocked(lambda: self.load(k), self.step)


def waiting(arm: Arm, data: ViewStream, workers: int, steps: int, first: int = 8) -> float:
    """Share of the time in which `arm`, step after step, waits for a loader with `workers`.

    The `first` steps are not counted: the workers start, and their queue (2 batches each) fills.
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
    seen = [clocked(lambda: next(batches), arm.step) for _ in range(first + steps)][first:]
    return sum(s.wait for s in seen) / sum(s.wait + s.work for s in seen)


def measure(
    root: Path, images: int, rounds: int, each: int = 2, px: int | None = None
) -> dict[str, Any]:
    """All arms on the pocket pair; seconds per step of BATCH images, the ratios, and the floors.

    `px`: side of the student's and the teacher's input; None for those of their configs.
    """
    keep_freed_memory()
    openmmlab.setup("mmpretrain")
    student = resolve("student", "resnet18_w32")
    page = resolve("teacher", "efficientnet_lite0")
    page = {k: v for k, v in page.items() if k != "card"}
    if px is not None:
        student, page = {**student, "input_px": px}, {**page, "input_px": px}
    method = resolve("method", "kdep")
    done = make_stages(root, images, student, page)
    spec = dict(
        student=student, method={"labels_used": False, **method}, share=1.0, share_seed=0, seed=0
    )
    spec["budget"] = dict(epochs=1, batch=BATCH)
    opened = open_views(done["views"], done["prepare"])
    taught = teaching(frozenset({"target"}), spec, done, opened)
    objective, target, _ = assemble.objective_config(spec, done, taught, root)
    live = {"live": page}
    alone = {"type": f"{__name__}.StudentAlone"}

    def views_of(**more: Any) -> ViewStream:
        return ViewStream(done["views"], 10**9, 1.0, 0, 0, **more)

    def stream(**more: Any) -> Callable[[int], Any]:
        data = views_of(**more)
        return lambda k: data.__getitems__(list(range(k * BATCH, (k + 1) * BATCH)))

    def as_the_paper(k: int) -> dict[str, Tensor]:
        """Decode, a fresh random crop and flip for every picture, at both sizes."""
        box, flip = draw_recipe(BATCH, 1, k, (0.4, 1.0), (0.75, 4 / 3))
        pick = np.random.default_rng(k).integers(0, len(opened.files), BATCH)
        pictures = [read_rgb(opened.root / opened.files[i]) for i in pick]
        out = {}
        for name, px in (("images", student["input_px"]), ("teacher_images", page["input_px"])):
            made = [render(p, box[i], bool(flip[i]), px) for i, p in enumerate(pictures)]
            out[name] = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
        return out

    arms = {
        "student": Arm(stream(), Distiller(student, alone)),
        "kdep": Arm(
            stream(**taught.stream), Distiller(student, objective, target, teacher=taught.model)
        ),
        "live": Arm(
            stream(pool=str(done["prepare"]), teacher_px=page["input_px"]),
            Distiller(student, objective, target, teacher=live),
        ),
        "paper": Arm(as_the_paper, Distiller(student, objective, target, teacher=live)),
    }
    teacher, where = build_teacher(page).to(compute_device()), compute_device()

    @exact_float32()  # as it runs in a step
    def ask(pictures: Tensor) -> None:
        teacher(pictures.to(where))

    seen: dict[str, list[Once]] = {name: [] for name in [*arms, "teacher"]}
    crops = arms["live"].load  # the teacher alone sees what the live arm has just shown it
    for r in range(rounds + 1):
        for name, arm in arms.items():
            got = [arm.once(r * each + k) for k in range(each)]
            seen[name] += got if r else []  # the first round warms up
        for k in range(r * each, (r + 1) * each):
            got = clocked(lambda k=k: crops(k)["teacher_images"], ask)
            seen["teacher"] += [got] if r else []
    wait = {n: median(o.wait for o in s) for n, s in seen.items()}
    step = {n: median(o.work for o in s) for n, s in seen.items()}
    whole = {n: median(o.wait + o.work for o in s) for n, s in seen.items()}
    cpu = {n: median(o.cpu for o in s) for n, s in seen.items()}
    workers = 2
    told = waiting(arms["kdep"], views_of(**taught.stream), workers, rounds * each)
    return {
        "batch": BATCH,
        "rounds": rounds,
        "wait_s": wait,
        "step_s": step,
        "cpu_s": cpu,
        "floors": floors(student, page),
        "flops_per_s": reach(),
        "ratios": {
            "warm-cache step / student-only step": whole["kdep"] / whole["student"],
            "live step / (student step + teacher forward)": step["live"]
            / (step["student"] + step["teacher"]),
            "data wait, share of a warm-cache step": wait["kdep"] / whole["kdep"],
            f"data wait with {workers} workers, share of a warm-cache step": told,
            "cache read, share of a student step": (wait["kdep"] - wait["student"])
            / whole["student"],
            "throughput against the paper's live loop": whole["paper"] / whole["kdep"],
        },
    }


def floors(student: dict[str, Any], page: dict[str, Any]) -> dict[str, float]:
    """What a step must compute and read, before any overhead.

    FLOPs by torch's counter: student forward and backward (three forwards), teacher forward, the
    projection of the target; bytes of pictures and features a batch.
    """
    from kdep_bench.networks.backbone import build_backbone

    net, teacher, px = build_backbone(student), build_teacher(page), student["input_px"]
    net.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as one:
        net(torch.zeros(1, 3, px, px))
    with FlopCounterMode(display=False) as two:
        teacher(torch.zeros(1, 3, page["input_px"], page["input_px"], dtype=torch.uint8))
    return {
        "student_step_flops": 3.0 * BATCH * one.get_total_flops(),
        "teacher_forward_flops": float(BATCH * two.get_total_flops()),
        "target_flops": 2.0 * BATCH * teacher.width * student["width"],
        "picture_bytes": 3.0 * BATCH * px * px,
        "feature_bytes": 2.0 * BATCH * teacher.width,
    }


def reach(side: int | None = None, times: int = 8) -> float:
    """FLOP/s of a large float32 matrix product, the best of some: what this machine can do.

    On a GPU, where 1024 rows are done before the next is started, of 8192; not in TF32.
    """
    where, best = compute_device(), float("inf")
    side = side or (1024 if where.type == "cpu" else 8192)
    a = torch.randn(side, side).to(where)
    for _ in range(times):
        synchronise()
        start = time.perf_counter()
        torch.mm(a, a)
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best

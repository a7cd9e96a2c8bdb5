"""Stage `pretrain`: one student, one method, one seed, on an mmengine Runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench import openmmlab
from kdep_bench.data.given_files import without_content
from kdep_bench.data.shares import labels_file, save_list, share_labels, share_of
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features.align import finite, rows_of
from kdep_bench.features.cache_read import open_cache
from kdep_bench.features.layers import layer_distances, spread_out
from kdep_bench.features.map_moments import save_map_moments
from kdep_bench.features.target import build_target
from kdep_bench.features.transform import Moments, std_ratio
from kdep_bench.files import read_strict
from kdep_bench.objectives.base import Demands, demands
from kdep_bench.objectives.levels import level_pairs, levels_of
from kdep_bench.pretrain.budgets import check_budget, epochs_note
from kdep_bench.pretrain.loop import workers_for
from kdep_bench.pretrain.parallel import check_split
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.pretrain.teaching import Teaching, teaching
from kdep_bench.pretrain.train import runner_config, train
from kdep_bench.registry import locate, type_path
from kdep_bench.students.backbone import build_backbone
from kdep_bench.students.discover import check_student

CHECKPOINT = "student.pth"


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Trains the student and writes its state dict to `student.pth`.

    Spec: `student`, `method`, `budget`, `share`, `share_seed`, `seed`; `teacher` (its config) where
    it runs live, on images under the input `images`. A method without objective is the scratch arm:
    the initialised student itself. A method with `weights` is a reference: a builder of given
    backbone weights.

    `budget`: epochs, batch, optimizer, warmup, schedule, precision; and where they are used
    accumulate (micro-batches a step), ema (decay), compile (back end of torch.compile).

    May run as several processes at once, one a rank, started by torchrun or srun with the same
    arguments: the batch is the global one, rank 0 writes, every rank returns the same outputs, and
    the process group is left at the end.
    """
    method, budget = spec["method"], spec["budget"] if spec["method"].get("objective") else {}
    if not budget:
        return untrained(spec, out)
    check_precision(budget.get("precision", "float32"))
    check_student(spec["student"])
    views = open_views(inputs["views"])
    shared, drawn_by = share_of(views.files, spec, inputs), share_labels(spec, inputs)
    images, listing = len(shared), save_list(out, views.files, shared)
    who = f"method {method['name']!r} on student {spec['student']['name']!r}"
    steps = check_budget(budget, images, len(views.files), spec["share"], who)
    wanted = demands(method["objective"])
    ranks, accumulate = openmmlab.planned_ranks(), budget.get("accumulate", 1)
    check_split(budget["batch"], ranks, accumulate, wanted.relates)
    taught = teaching(wanted.needs, spec, inputs, views)
    objective, target, probes = objective_config(spec, inputs, taught, out)
    dataset = {
        "type": "kdep_bench.pretrain.stream.ViewStream",
        "views": str(inputs["views"]),
        "length": steps * budget["batch"],
        "share": spec["share"],
        "share_seed": spec["share_seed"],
        "seed": spec["seed"],
        "labels": str(labels_file(inputs)) if method["labels_used"] else None,
        "share_labels": drawn_by and str(drawn_by),
        "together": "views" in wanted.needs,
        **taught.stream,
    }
    config = runner_config(
        model={
            "type": "kdep_bench.pretrain.distiller.Distiller",
            "student": spec["student"],
            "objective": objective,
            "target": target,
            "precision": budget.get("precision", "float32"),
            "maps": "maps" in wanted.needs,
            "levels_before": sorted(wanted.levels_before),
            "teacher": taught.model,
            "accumulate": accumulate,
            "compile": budget.get("compile"),
        },
        dataset=dataset,
        collate="kdep_bench.pretrain.stream.already_batched",
        steps=steps,
        batch=budget["batch"],
        optimizer=budget["optimizer"],
        schedule=schedule(budget, steps),
        checkpoint_every=max(1, steps // 4),
        world_size=ranks,
        loss_scaling=budget.get("precision") == "float16",
        some_unused="maps" in wanted.needs,
        workers=workers_for(dataset, budget["batch"] // ranks),
    )
    trained = train(config, spec["seed"], out / "run", progress, budget.get("ema"))
    if openmmlab.is_main_rank():
        save_state(trained.state, out)
        for used in (out / "run").glob("*.pth*"):
            used.unlink()
    openmmlab.leave_distributed()
    seen = steps * budget["batch"]
    notes = ["the images of the share were drawn per class, by label"] if drawn_by else []
    if differs := epochs_note(budget, images, len(views.files), steps):
        notes.append(differs)
    return {
        "steps": steps,
        "epochs": seen / images,
        "images": images,
        "image_list": listing,
        "notes": notes,
        "images_seen": seen,
        "views": views.views,
        "labels_used": bool(method["labels_used"]),
        "images_per_s": round(seen / trained.seconds, 1),
        "train_s": round(trained.seconds, 2),
        "curves": {"pretrain_loss": trained.curve},
        "terms": trained.terms,
        "processes": ranks,
        **extra_cost(trained.state, wanted, taught, seen),
        **taught.outputs,
        **probes,
    }


def extra_cost(
    state: dict[str, Any],
    wanted: Demands,
    taught: Teaching,
    seen: int,
) -> dict[str, Any]:
    """What a method needs beside its student.

    `extra_parameters`: elements of what is trained or kept beside the backbone and dropped at
    export. `extra_forwards`: forward passes, in the `seen` samples of the run, of networks that
    are not the student: a live teacher, a peer, an average. A cached teacher's are its cache's.
    """
    parameters = sum(v.numel() for k, v in state.items() if k.startswith("objective."))
    forwards = wanted.forwards * seen
    if "live" in taught.model:
        forwards += seen
    return {"extra_parameters": parameters, "extra_forwards": forwards}


def check_precision(precision: str) -> None:
    """Refuses float16 where there is no GPU: a CPU has no loss scaling and little use for it."""
    if precision == "float16" and not torch.cuda.is_available():
        raise KdepError(
            "budget.precision is 'float16', which needs a GPU, and this machine has none",
            fix="use 'float32' or 'bfloat16' (bfloat16 needs no loss scaling)",
        )


def untrained(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """The scratch arm (seeded random weights) or a reference whose weights are given."""
    method = spec["method"]
    torch.manual_seed(spec["seed"])
    backbone = build_backbone(spec["student"])
    if method.get("weights") is not None:
        locate(method["weights"]["type"])(
            backbone, **{k: v for k, v in without_content(method["weights"]).items() if k != "type"}
        )
    if openmmlab.is_main_rank():
        save_state({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, out)
    return {
        "steps": 0,
        "epochs": 0.0,
        "images": 0,
        "images_seen": 0,
        "views": 0,
        "labels_used": bool(method["labels_used"]),
        "images_per_s": None,
        "train_s": 0.0,
        "curves": {},
    }


def save_state(state: dict[str, Any], out: Path) -> None:
    """Pure tensors, contiguous, written whole or not at all."""
    partial = out / f".{CHECKPOINT}"
    torch.save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, partial)
    partial.replace(out / CHECKPOINT)


def objective_config(
    spec: dict[str, Any], inputs: dict[str, Path], taught: Teaching, out: Path
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """(objective config with everything it asks for, target config, probes).

    Raises KdepError for an objective that this method's labels or alignment cannot serve.
    """
    method = spec["method"]
    objective, name = dict(method["objective"]), type_path(method["objective"]["type"])
    wanted = demands(objective)
    if "labels" in wanted.needs and not method["labels_used"]:
        raise KdepError(
            f"the objective {name} needs labels, but the method {method['name']} has "
            "labels_used=False",
            fix="set labels_used=True, or choose an objective without labels",
        )
    target, probes = None, {}
    if "target" in wanted.needs:
        if "align" not in inputs or method.get("transform") is None:
            raise KdepError(
                f"the objective {name} regresses an aligned teacher feature, but the config of "
                f"method {method['name']} lacks `align` or `transform`",
                fix="set both in the method's config",
            )
        target = {"align_dir": str(inputs["align"]), "transform": method["transform"]}
        probes = target_probes(spec, inputs, target)
    answers: dict[str, Callable[[], Any]] = {
        "width": lambda: spec["student"]["width"],
        "classes": lambda: len(read_strict(labels_file(inputs))["classes"]),
        "epochs": lambda: spec["budget"]["epochs"],
        "views": lambda: open_views(inputs["views"]).views,
        "target_mean_square": lambda: probes.get("target_mean_square"),
        "teacher_mean_variance": lambda: mean_variance(spec, inputs),
        "student_maps": lambda: describe(spec["student"]),
        "layer_distances": lambda: distances(spec, inputs),
        "map_moments": lambda: moments_of_maps(spec, inputs, out),
        **taught.facts,
    }
    asked = sorted(wanted.asks - set(objective))
    unknown = [a for a in asked if a not in answers]
    if unknown:
        raise KdepError(
            f"the objective {name} requires the constructor argument {', '.join(unknown)}, which "
            "pre-training cannot provide",
            expected=f"one of {', '.join(sorted(answers))}",
            fix="set it in the method's config, or add the teacher output it belongs to to the "
            "objective's `needs`",
        )
    return objective | {a: answers[a]() for a in asked}, target, probes


def target_probes(
    spec: dict[str, Any], inputs: dict[str, Path], target: dict[str, Any]
) -> dict[str, Any]:
    """Mean square and Std Ratio of the target over the fitting rows."""
    head, moments = build_target(**target), Moments(spec["student"]["width"])

    def told(f: Tensor) -> Tensor:
        g = head(f)
        moments.add(g)
        return g

    return {
        "target_mean_square": mean_square(told, spec, inputs),
        "std_ratio_after_transform": finite(std_ratio(moments.std)),
    }


def moments_of_maps(spec: dict[str, Any], inputs: dict[str, Path], out: Path) -> str:
    """Fits the moments of the maps that the objective names, over places; their folder.

    At the sides of the student's levels and at side 1. Each rank writes a folder of its own, so
    that none reads what another is writing; the rows and so the moments are the same.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the method {spec['method']['name']} computes a basis of the teacher's maps before "
            "training, which needs cached teacher features",
            fix="remove budget.teacher='live' from the suite",
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    rows = rows_of(share_of(views.files, spec, inputs), views.views)
    student, wanted = describe(spec["student"]), set[tuple[str, int]]()
    for own, its in level_pairs(spec["method"]["objective"]):
        if own in student and f"maps.{its}" in cache.extras:
            wanted |= {(its, student[own]["side"]), (its, 1)}
    folder = out / "map_moments" / str(openmmlab.planned_rank())
    save_map_moments(cache, rows, wanted, folder)
    return str(folder)


def distances(spec: dict[str, Any], inputs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """How far the teacher's maps that the objective names are apart, over the fitting rows."""
    if "cache" not in inputs:
        raise KdepError(
            f"the method {spec['method']['name']} compares layers of the teacher before training, "
            "which needs cached teacher features",
            fix="remove budget.teacher='live' from the suite",
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    rows = rows_of(share_of(views.files, spec, inputs), views.views)
    return layer_distances(cache, rows, sorted(levels_of(spec["method"]["objective"])))


def mean_variance(spec: dict[str, Any], inputs: dict[str, Path]) -> float:
    """Mean variance of the channels of the teacher's feature over the fitting rows."""
    sums: list[Tensor] = []

    def told(f: Tensor) -> Tensor:
        sums.append(f.double().sum(0))
        counts.append(len(f))
        return f

    counts: list[int] = []
    square = mean_square(told, spec, inputs)
    mean = torch.stack(sums).sum(0) / sum(counts)
    return square - float(mean.square().mean())


def mean_square(
    of: Callable[[Tensor], Tensor], spec: dict[str, Any], inputs: dict[str, Path], most: int = 65536
) -> float:
    """Mean square, over channels, of a map of the teacher's feature over the fitting rows.

    Of at most `most` rows: the standard error is then far below what a loss weight can feel.
    """
    if "cache" not in inputs:
        raise KdepError(
            f"the loss weight of method {spec['method']['name']} depends on the mean square of "
            "the teacher's feature, which is unknown before training with a live teacher and no "
            "alignment",
            fix="remove budget.teacher='live' from the suite",
        )
    views, cache = open_views(inputs["views"]), open_cache(inputs["cache"])
    images = share_of(views.files, spec, inputs)
    rows, total = spread_out(rows_of(images, views.views), most), 0.0
    for start in range(0, len(rows), 4096):
        f = torch.from_numpy(cache.rows(rows[start : start + 4096])).float()
        total += float(of(f).double().square().mean(1).sum())
    return total / len(rows)


def schedule(budget: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """Learning-rate schedule by iteration, its shape stretched over the budget.

    "cosine": linear warm-up over the share `warmup` of the steps, then half a cosine to zero.
    "step": x0.1 after each third, KDEP's shape (x0.1 every 30 of 90 epochs).
    """
    warm = int(budget.get("warmup", 0.0) * steps)
    if warm == 1:  # mmengine's LinearLR of one step would keep its start factor for the whole run
        warm = 0
    plan: list[dict[str, Any]] = []
    if warm:
        plan.append(
            {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warm}
        )
    shape = budget.get("schedule", "cosine")
    if shape == "cosine":
        plan.append(
            {
                "type": "CosineAnnealingLR",
                "T_max": max(1, steps - warm),
                "eta_min": 0.0,
                "by_epoch": False,
                "begin": warm,
                "end": steps,
            }
        )
    elif shape == "step":
        plan.append(
            {
                "type": "MultiStepLR",
                "milestones": [max(1, steps // 3), max(2, 2 * steps // 3)],
                "gamma": 0.1,
                "by_epoch": False,
            }
        )
    else:
        raise KdepError(f"unknown schedule {shape!r}", expected="'cosine' or 'step'")
    return plan

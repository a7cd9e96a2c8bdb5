"""Stage `pretrain`: one student, one method, one seed, on an mmengine Runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdep_bench import openmmlab
from kdep_bench.augments.base import augment_class
from kdep_bench.data.fractions import labels_file, labels_for_fraction, save_list, select_for_spec
from kdep_bench.data.views import open_views
from kdep_bench.objectives.base import Demands, demands
from kdep_bench.pretrain.assemble import (
    augment_config,
    check_precision,
    objective_config,
    schedule,
)
from kdep_bench.pretrain.budgets import check_budget, epochs_note
from kdep_bench.pretrain.checkpoint import save_state, untrained
from kdep_bench.pretrain.diagnostics import extra_cost
from kdep_bench.pretrain.loop import workers_for
from kdep_bench.pretrain.parallel import check_split
from kdep_bench.pretrain.teaching import Teaching, teaching
from kdep_bench.pretrain.train import Trained, runner_config, train
from kdep_bench.students.discover import check_student


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Trains the student and writes its state dict to `student.pth`.

    Spec: `student`, `method`, `budget`, `share`, `share_seed`, `seed`; for a live teacher also its
    config `teacher`; its images are under the input `images`. With several teachers: `roles`, their
    names in order; the inputs `<role>.cache` and `<role>.align`; and `teachers`, the configs of the
    live ones. A method without objective (scratch) gives the initialised student. A method with
    `weights` is a reference: a function that builds given backbone weights.

    `budget`: epochs, batch, optimizer, warmup, schedule, precision; optionally accumulate
    (micro-batches per step), ema (decay), compile (back end of torch.compile).

    May run as several processes at once, one per rank, started by torchrun or srun with the same
    arguments: the batch is the global one, rank 0 writes, every rank returns the same outputs, and
    the process group is left at the end.
    """
    method, budget = spec["method"], spec["budget"] if spec["method"].get("objective") else {}
    if not budget:
        return untrained(spec, out)
    check_precision(budget.get("precision", "float32"))
    check_student(spec["student"])
    views = open_views(inputs["views"])
    shared, drawn_by = select_for_spec(views.files, spec, inputs), labels_for_fraction(spec, inputs)
    images, listing = len(shared), save_list(out, views.files, shared)
    who = f"method {method['name']!r} on student {spec['student']['name']!r}"
    steps = check_budget(budget, images, len(views.files), spec["share"], who)
    required, ranks = demands(method["objective"]), openmmlab.planned_ranks()
    taught = teaching(required.needs, spec, inputs, views)
    augment = augment_config(method, required, taught)
    _check_split(budget, ranks, required, augment)
    objective, target, probes = objective_config(spec, inputs, taught, out)
    model = {"objective": objective, "target": target, "augment": augment}
    dataset = _dataset_config(spec, inputs, steps, required, taught, drawn_by)
    config = _runner_config(
        spec, _model_config(spec, required, taught) | model, dataset, steps, ranks, required
    )
    trained = train(config, spec["seed"], out / "run", progress, budget.get("ema"))
    if openmmlab.is_main_rank():
        save_state(trained.state, out)
        for used in (out / "run").glob("*.pth*"):
            used.unlink()
    openmmlab.leave_distributed()
    by_label = "the images of the share were drawn per class, by label" if drawn_by else None
    notes = [by_label, epochs_note(budget, images, len(views.files), steps)]
    return {
        **_amounts(steps, budget["batch"], images, trained),
        "image_list": listing,
        "notes": [note for note in notes if note],
        "views": views.views,
        "labels_used": bool(method["labels_used"]),
        "processes": ranks,
        **extra_cost(trained.state, required, taught, steps * budget["batch"]),
        **taught.outputs,
        **probes,
    }


def _check_split(
    budget: dict[str, Any], ranks: int, required: Demands, augment: dict[str, Any] | None
) -> None:
    """KdepError for a batch that cannot be split over the processes and micro-batches."""
    couples_samples = required.couples_samples or (
        augment is not None and augment_class(augment).couples_samples
    )
    check_split(budget["batch"], ranks, budget.get("accumulate", 1), couples_samples)


def _dataset_config(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    steps: int,
    required: Demands,
    taught: Teaching,
    drawn_by: Path | None,
) -> dict[str, Any]:
    """Config of the training samples. `drawn_by`: labels by which the share was drawn."""
    return {
        "type": "kdep_bench.pretrain.stream.ViewStream",
        "views": str(inputs["views"]),
        "length": steps * spec["budget"]["batch"],
        "share": spec["share"],
        "share_seed": spec["share_seed"],
        "seed": spec["seed"],
        "labels": str(labels_file(inputs)) if spec["method"]["labels_used"] else None,
        "share_labels": drawn_by and str(drawn_by),
        "together": "views" in required.needs,
        **taught.stream,
    }


def _model_config(spec: dict[str, Any], required: Demands, taught: Teaching) -> dict[str, Any]:
    """Config of the Distiller without its objective, target and augmentation."""
    budget = spec["budget"]
    return {
        "type": "kdep_bench.pretrain.distiller.Distiller",
        "student": spec["student"],
        "precision": budget.get("precision", "float32"),
        "maps": required.pyramid,
        "levels_before": sorted(required.levels_before),
        "teacher": taught.model,
        "roles": spec.get("roles", []),
        "accumulate": budget.get("accumulate", 1),
        "compile": budget.get("compile"),
        "seed": spec["seed"],
    }


def _runner_config(
    spec: dict[str, Any],
    model: dict[str, Any],
    dataset: dict[str, Any],
    steps: int,
    ranks: int,
    required: Demands,
) -> dict[str, Any]:
    """Config of the mmengine Runner."""
    budget = spec["budget"]
    return runner_config(
        model=model,
        dataset=dataset,
        collate="kdep_bench.pretrain.stream.already_batched",
        steps=steps,
        batch=budget["batch"],
        optimizer=budget["optimizer"],
        schedule=schedule(budget, steps),
        checkpoint_every=max(1, steps // 4),
        world_size=ranks,
        loss_scaling=budget.get("precision") == "float16",
        some_unused=required.pyramid,
        workers=workers_for(dataset, budget["batch"] // ranks),
    )


def _amounts(steps: int, batch: int, images: int, trained: Trained) -> dict[str, Any]:
    """How much was trained, how fast, and the curves of the losses."""
    seen = steps * batch
    return {
        "steps": steps,
        "epochs": seen / images,
        "images": images,
        "images_seen": seen,
        "images_per_s": round(seen / trained.seconds, 1),
        "train_s": round(trained.seconds, 2),
        "curves": {"pretrain_loss": trained.curve},
        "terms": trained.terms,
    }

"""Stage `pretrain`: pre-trains one student by one method with one seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdep_bench import openmmlab
from kdep_bench.augments.base import augment_class
from kdep_bench.data.fractions import (
    DRAWN_BY_LABEL,
    labels_file,
    labels_for_fraction,
    save_list,
    select_for_spec,
)
from kdep_bench.data.views import open_views
from kdep_bench.objectives.base import Demands, demands
from kdep_bench.pretrain.assemble import (
    augment_config,
    check_precision,
    objective_config,
    schedule,
)
from kdep_bench.pretrain.budgets import check_budget, epochs_note
from kdep_bench.pretrain.checkpoint import save_state, write_untrained
from kdep_bench.pretrain.diagnostics import extra_cost
from kdep_bench.pretrain.loop import workers_for
from kdep_bench.pretrain.parallel import check_split
from kdep_bench.pretrain.teaching import TeacherSource, open_teacher_source
from kdep_bench.pretrain.train import Trained, runner_config, train
from kdep_bench.students.discover import check_student


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Trains the student and writes its state dict to `student.pth`.

    A method without an objective is not trained: `student.pth` then has random weights (scratch) or
    the weights that the method's `weights` loads (a reference).

    The stage may run as several processes, one per rank, started by torchrun with the same
    arguments. The batch of the budget is the global batch; rank 0 writes the files; every rank
    returns the same outputs; the process group is destroyed at the end.

    Args:
        spec: `student`, `method`, `budget`, `share` and `share_seed` (the data fraction), `seed`;
            `teacher`, the config of a live teacher. With several teachers: `roles`, their names in
            order, and `teachers`, the configs of the live ones by role. `budget` has epochs,
            batch, optimizer, warmup, schedule, precision, and optionally epochs_over ("pool": an
            epoch has as many samples as the pool has images), accumulate (micro-batches per step),
            ema (decay), compile (back end of torch.compile).
        inputs: folders of earlier stages: `views`; `prepare`, with labels; `cache` and `align`, or
            `<role>.cache` and `<role>.align` with several teachers; `images`, the source images for
            a live teacher.
        out: folder of this stage.
        progress: called with (steps done, all steps, note).

    Returns:
        the outputs of the stage: image_list, notes, views, labels_used, processes, and the values
        of `_amounts`, `extra_cost`, `TeacherSource.outputs` and `target_statistics`.

    Raises:
        KdepError: a method that does not fit its data, student, teacher or budget, or training
            that fails (see `train.train`).
    """
    method = spec["method"]
    budget = spec["budget"] if method.get("objective") else {}
    if not budget:
        return write_untrained(spec, out)
    check_precision(budget.get("precision", "float32"))
    check_student(spec["student"])
    views = open_views(inputs["views"])
    selected = select_for_spec(views.files, spec, inputs)
    fraction_labels = labels_for_fraction(spec, inputs)
    images, listing = len(selected), save_list(out, views.files, selected)
    subject = f"method {method['name']!r} on student {spec['student']['name']!r}"
    steps = check_budget(budget, images, len(views.files), spec["share"], subject)
    required, ranks = demands(method["objective"]), openmmlab.planned_ranks()
    teacher_source = open_teacher_source(required.needs, spec, inputs, views)
    augment = augment_config(method, required, teacher_source)
    copies = 1 if augment is None else augment_class(augment).copies
    _check_split(budget, ranks, required, augment)
    objective, target, measurements = objective_config(spec, inputs, teacher_source, out)
    model = {"objective": objective, "target": target, "augment": augment}
    dataset = _dataset_config(spec, inputs, steps, required, teacher_source, fraction_labels)
    config = _runner_config(
        spec, _model_config(spec, required, teacher_source) | model, dataset, steps, ranks, required
    )
    trained = train(config, spec["seed"], out / "run", progress, budget.get("ema"))
    if openmmlab.is_main_rank():
        save_state(trained.state, out)
        for checkpoint in (out / "run").glob("*.pth*"):  # no longer needed for resuming
            checkpoint.unlink()
    openmmlab.leave_distributed()
    notes = [
        DRAWN_BY_LABEL if fraction_labels else None,
        epochs_note(budget, images, len(views.files), steps),
        measurements.get("teacher_weights", {}).get("note"),
    ]
    return {
        **_amounts(steps, budget["batch"], images, trained),
        "image_list": listing,
        "notes": [note for note in notes if note],
        "views": views.views,
        "labels_used": bool(method["labels_used"]),
        "processes": ranks,
        **extra_cost(trained.state, required, teacher_source, steps * budget["batch"], copies),
        **teacher_source.outputs,
        **measurements,
    }


def _check_split(
    budget: dict[str, Any], ranks: int, required: Demands, augment: dict[str, Any] | None
) -> None:
    """Raises KdepError if a batch cannot be split over the processes and micro-batches."""
    couples_samples = required.couples_samples or (
        augment is not None and augment_class(augment).couples_samples
    )
    check_split(budget["batch"], ranks, budget.get("accumulate", 1), couples_samples)


def _dataset_config(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    steps: int,
    required: Demands,
    teacher_source: TeacherSource,
    fraction_labels: Path | None,
) -> dict[str, Any]:
    """Config of the ViewStream.

    `fraction_labels`: labels file, if the images of the data fraction are drawn per class.
    """
    return {
        "type": "kdep_bench.pretrain.stream.ViewStream",
        "views": str(inputs["views"]),
        "length": steps * spec["budget"]["batch"],
        "share": spec["share"],
        "share_seed": spec["share_seed"],
        "seed": spec["seed"],
        "labels": str(labels_file(inputs)) if spec["method"]["labels_used"] else None,
        "share_labels": None if fraction_labels is None else str(fraction_labels),
        "together": "views" in required.needs,
        **teacher_source.stream,
    }


def _model_config(
    spec: dict[str, Any], required: Demands, teacher_source: TeacherSource
) -> dict[str, Any]:
    """Config of the Distiller without its objective, target and augmentation."""
    budget = spec["budget"]
    return {
        "type": "kdep_bench.pretrain.distiller.Distiller",
        "student": spec["student"],
        "precision": budget.get("precision", "float32"),
        "maps": required.pyramid,
        "pre_activation_levels": sorted(required.pre_activation_levels),
        "teacher": teacher_source.model,
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
    """Amount of training, throughput and loss curve: outputs of the stage.

    Keys: steps, epochs (of the data fraction), images (of the data fraction), images_seen (repeats
    included), images_per_s, train_s (seconds), curves, terms (mean fraction of the loss per term).
    """
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

"""Checks of the numbers of images, before anything runs.

`check_counts` lists the folders of the user's data, each only as far as a rule needs.
Each rule is a small function in a list, as in `pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdep_bench.errors import KdepError
from kdep_bench.features.policies import check_rows
from kdep_bench.pretrain.budgets import check_budget
from kdep_bench.signatures import class_value
from kdep_bench.suite import known_data
from kdep_bench.suite.methods import methods_for, teacher_width, trains
from kdep_bench.suite.schema import Json, Suite
from kdep_bench.suite.teachers import teachers_by_role
from kdep_bench.transfer.recipes import check_probe


@dataclass(frozen=True)
class CountedRun:
    """One method on one student at one data fraction, with its numbers of images.

    Attributes:
        suite_teacher: the suite's teacher for that student.
        epochs: of this pre-training, which may be fewer than the budget's.
        images: of the data fraction, a lower bound.
        pool: all images, a lower bound.
    """

    suite: Suite
    student: Json
    method: Json
    suite_teacher: Json | None
    epochs: float
    fraction: float
    images: int
    pool: int

    @property
    def label(self) -> str:
        fraction = "" if self.fraction == 1 else f" at the data fraction {self.fraction:g}"
        return f"method {self.method['name']!r} on student {self.student['name']!r}{fraction}"


def check_counts(suite: Suite) -> None:
    """Raises KdepError where the data have too few images for a method or a task.

    Data that are absent, or whose counts are unknown, are checked by their `prepare` stage.
    """
    for part in suite.variants or [suite]:
        sufficient = _sufficient_images(part)
        pool = known_data.pool_images(part.data, sufficient)
        if pool is not None:
            _check_fractions(part, pool, pool < sufficient)
            for run in _runs(part, pool):
                for rule in RUN_RULES:
                    rule(run)
    for task in suite.tasks:
        for task_rule in TASK_RULES:
            task_rule(suite.data, task)
    for probe_config in suite.probes:
        for probe_rule in PROBE_RULES:
            probe_rule(suite, probe_config)


def _check_fractions(suite: Suite, pool: int, exact: bool) -> None:
    """Refuses two data fractions that select the same images: they would be separate rows."""
    if not exact or suite.share_by != "image":
        return
    first: dict[int, float] = {}
    for fraction in suite.shares:
        earlier = first.setdefault(round(fraction * pool), fraction)
        if earlier != fraction:
            raise KdepError(
                f"the data fractions {earlier:g} and {fraction:g} of {pool} images select the same "
                f"{round(fraction * pool)} images",
                fix="remove one of them from `shares`",
            )


def _sufficient_images(suite: Suite) -> int:
    """A number of pool images with which no rule in RUN_RULES can fail."""
    budget, least = suite.budget, min(suite.shares)
    steps = 1.0 if budget.ema is None else math.log(0.5) / math.log(budget.ema) + 1
    assistants = [
        ref
        for m in suite.methods
        for ref in (m.get("teacher"), *(m.get("teachers") or {}).values())
        if isinstance(ref, dict) and "method" in ref
    ]
    widths = [s["width"] for s in [*suite.students, *(a["student"] for a in assistants)]]
    epochs = min([1.0, budget.epochs, *(a["epochs"] or 1.0 for a in assistants)])
    return math.ceil(max(budget.batch * steps / epochs, *widths) / least) + 2


def _runs(suite: Suite, pool: int) -> Iterator[CountedRun]:
    for student in suite.students:
        suite_teacher = suite.teachers[student["name"]]
        for method in methods_for(suite, student):
            if trains(method):
                for fraction in suite.shares:
                    yield from _chain(
                        suite, student, method, suite_teacher, suite.budget.epochs, fraction, pool
                    )


def _chain(
    suite: Suite,
    student: Json,
    method: Json,
    suite_teacher: Json | None,
    epochs: float,
    fraction: float,
    pool: int,
) -> Iterator[CountedRun]:
    """The intermediate teachers of a method, if it has any, and then the method."""
    for role_teacher in teachers_by_role(method, suite_teacher):
        intermediate = role_teacher.method.get("teacher")
        if intermediate is None:
            continue
        upstream_epochs = epochs if intermediate["epochs"] is None else intermediate["epochs"]
        yield from _chain(
            suite,
            intermediate["student"],
            intermediate["method"],
            suite_teacher,
            upstream_epochs,
            fraction,
            pool,
        )
    yield CountedRun(
        suite, student, method, suite_teacher, epochs, fraction, round(fraction * pool), pool
    )


# ---- rules of a pre-training ----


def at_least_one_image(run: CountedRun) -> None:
    """A data fraction must contain at least one image."""
    if run.images < 1:
        raise KdepError(
            f"{run.label} has {run.fraction:g} of {run.pool} images, which rounds to 0 images",
            fix=f"use a data fraction of {math.ceil(1000 / run.pool) / 1000:g} or more",
        )


def budget(run: CountedRun) -> None:
    """A budget must have the epochs that it sets on so few images."""
    spec = {**run.suite.budget.spec(), "epochs": run.epochs}
    check_budget(spec, run.images, run.pool, run.fraction, run.label)


def alignment(run: CountedRun) -> None:
    """An alignment needs at least as many features as the directions that it fits."""
    width = run.student["width"]
    for role_teacher in teachers_by_role(run.method, run.suite_teacher):
        if role_teacher.method.get("align"):
            directions = min(
                width, (role_teacher.config and teacher_width(role_teacher.config)) or width
            )
            check_rows(
                run.images, run.suite.budget.views, directions, run.fraction, run.pool, run.label
            )


RUN_RULES: tuple[Callable[[CountedRun], None], ...] = (at_least_one_image, budget, alignment)


# ---- rules of a task ----

_FINE_TUNE = "kdep_bench.transfer.classification.FineTune"
_PROBE = "kdep_bench.transfer.classification.LinearProbe"


def fine_tuning_batch(data: Json, task: Json) -> None:
    """The training images of a fine-tuning must fill a batch: otherwise it takes no step."""
    if task["type"] != _FINE_TUNE:
        return
    folder, batch = f"{task['recipe']['folder']}/train", task["recipe"]["batch"]
    counts = known_data.training_images(data, folder)
    if counts is None or max(counts) >= known_data.MOST_PER_CLASS or sum(counts) >= batch:
        return
    raise KdepError(
        f"task {task['name']!r} has batches of {batch} images, but {folder} of the data "
        f"{data['name']!r} has only {sum(counts)}",
        fix=f"set `batch` in the task's recipe to {sum(counts)} or less, or add images",
    )


def probe(data: Json, task: Json) -> None:
    """Every split or fold of a linear probe must have images of every class."""
    if task["type"] != _PROBE:
        return
    recipe = task["recipe"]
    folds = recipe["protocol"] == "folds"
    folder = recipe["folder"] if folds else f"{recipe['folder']}/train"
    counts = known_data.training_images(data, folder)
    counted_in_full = bool(counts) and max(counts) < known_data.MOST_PER_CLASS
    if counts and (folds or counted_in_full):
        check_probe(recipe, counts, f"{folder} of the data {data['name']!r}")


TASK_RULES: tuple[Callable[[Json, Json], None], ...] = (fine_tuning_batch, probe)


# ---- rules of a probe ----


def shots(suite: Suite, probe: Json) -> None:
    """Every class must have as many training images as the largest number of shots."""
    argument = class_value(probe["type"], "shots_argument")
    if not argument:
        return
    folder = f"{probe['folder']}/train"
    counts, largest = known_data.training_images(suite.data, folder), max(probe[argument])
    if counts is None or min(counts) >= min(largest, known_data.MOST_PER_CLASS):
        return
    raise KdepError(
        f"probe {probe['name']!r} uses {largest} training images per class, but the smallest class "
        f"of {folder} of the data {suite.data['name']!r} has {min(counts)}",
        fix=f"lower {argument!r} in the probe's config to {min(counts)} or less, or add images",
    )


def more_images_than_width(suite: Suite, probe: Json) -> None:
    """A rank can only be measured from more images than dimensions."""
    if not class_value(probe["type"], "more_images_than_width"):
        return
    folder = f"{probe['folder']}/test"
    counts = known_data.training_images(suite.data, folder)
    if counts is None or max(counts) >= known_data.MOST_PER_CLASS:
        return
    for student in suite.students:
        if sum(counts) <= student["width"]:
            raise KdepError(
                f"probe {probe['name']!r} needs more images than the student {student['name']!r} "
                f"has dimensions ({student['width']}), but {folder} of the data "
                f"{suite.data['name']!r} has {sum(counts)} images",
                fix="add test images, or remove the probe",
            )


PROBE_RULES: tuple[Callable[[Suite, Json], None], ...] = (shots, more_images_than_width)

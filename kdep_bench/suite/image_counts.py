"""Checks, before anything runs, that the data have enough images for the methods and tasks.

`check_counts` counts the images in the user's folders and stops as soon as there are enough. Each
rule is a small function in a list, as in `suite/pairs.py`. The pool is the set of pre-training
images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults
from kdep_bench.features.policies import check_rows
from kdep_bench.pretrain.budgets import check_budget
from kdep_bench.signatures import class_value
from kdep_bench.suite import known_data
from kdep_bench.suite.methods import SAME_STUDENT, methods_for, teacher_width, trains
from kdep_bench.suite.schema import Json, Suite
from kdep_bench.suite.teachers import teachers_by_role
from kdep_bench.transfer.recipes import check_probe


@dataclass(frozen=True)
class CountedRun:
    """One pre-training: a method on a student at a data fraction, with its numbers of images.

    Attributes:
        suite_teacher: the suite's teacher for the student; None without a teacher.
        epochs: epochs of this pre-training, which may be fewer than the budget's.
        fraction: fraction of the pool's images.
        images: lower bound of the number of images in the data fraction.
        pool: lower bound of the number of images in the pool.
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
    """Raises KdepError if the data have too few images for a method, a task or a probe.

    Also if a probe's file of text embeddings lacks a class.

    If the data are missing or cannot be counted, nothing is checked here; stage `prepare` checks
    them.
    """
    faults = Faults()
    for part in suite.variants or [suite]:
        sufficient = _sufficient_images(part)
        pool = known_data.pool_images(part.data, sufficient)
        if pool is not None:
            with faults.collect():
                _check_fractions(part, pool, is_exact=pool < sufficient)
            runs = list(_runs(part, pool))
            for rule in RUN_RULES:
                with faults.collect():  # only the first fault: that of other runs is the same
                    for run in runs:
                        rule(run)
    for task in suite.tasks:
        with faults.collect():
            for task_rule in TASK_RULES:
                task_rule(suite.data, task)
    for probe_config in suite.probes:
        with faults.collect():
            for probe_rule in PROBE_RULES:
                probe_rule(suite, probe_config)
    faults.raise_any(f"the suite {suite.name!r}")


def _check_fractions(suite: Suite, pool: int, is_exact: bool) -> None:
    """Raises KdepError for two data fractions that select the same images.

    Tables would show them as different rows.

    Args:
        suite: the suite.
        pool: number of images in the pool.
        is_exact: whether `pool` is the exact number, not a lower bound.
    """
    if not is_exact or suite.share_by != "image":
        return
    first_fractions: dict[int, float] = {}  # number of images -> the first fraction with it
    for fraction in suite.shares:
        earlier = first_fractions.setdefault(round(fraction * pool), fraction)
        if earlier != fraction:
            raise KdepError(
                f"the data fractions {earlier:g} and {fraction:g} of {pool} images select the same "
                f"{round(fraction * pool)} images",
                fix="remove one of them from `shares`",
            )


def _sufficient_images(suite: Suite) -> int:
    """A number of pool images with which no rule in RUN_RULES can fail."""
    budget, smallest_fraction = suite.budget, min(suite.shares)
    # If a moving average of the weights is exported (`ema`), the training must be long enough that
    # the initial values have lost half of their weight in it.
    steps = 1.0 if budget.ema is None else math.log(0.5) / math.log(budget.ema) + 1
    assistants = [
        ref
        for m in suite.methods
        for ref in (m.get("teacher"), *(m.get("teachers") or {}).values())
        if isinstance(ref, dict) and "method" in ref
    ]
    assistant_students = [a["student"] for a in assistants if a["student"] != SAME_STUDENT]
    widths = [s["width"] for s in [*suite.students, *assistant_students]]
    epochs = min([1.0, budget.epochs, *(a["epochs"] or 1.0 for a in assistants)])
    batch = max([budget.batch, *(a.get("batch") or 0 for a in assistants)])
    # + 2, because the number of images of a fraction is rounded.
    return math.ceil(max(batch * steps / epochs, *widths) / smallest_fraction) + 2


def _runs(suite: Suite, pool: int) -> Iterator[CountedRun]:
    """The pre-trainings of a suite, including the pre-trainings of intermediate teachers."""
    for student in suite.students:
        suite_teacher = suite.teachers[student["name"]]
        for method in methods_for(suite, student):
            if trains(method):
                # The smallest first: what corrects its faults corrects those of the others.
                for fraction in sorted(suite.shares):
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
    batch: int | None = None,
) -> Iterator[CountedRun]:
    """The pre-trainings of a method's intermediate teachers, if it has any, and its own."""
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
            intermediate.get("batch"),
        )
    if batch is not None:
        budget = suite.budget.model_copy(update={"batch": batch})
        suite = suite.model_copy(update={"budget": budget})
    images = round(fraction * pool)
    if (synthesis := method.get("synthesis")) is not None:
        # The student is trained on the images of its data fraction and on those that are made.
        images = pool = images + int(synthesis.get("images") or 0)
    yield CountedRun(suite, student, method, suite_teacher, epochs, fraction, images, pool)


# ---- rules of a pre-training ----


def check_nonempty_fraction(run: CountedRun) -> None:
    """Checks that the data fraction contains at least one image."""
    if run.pool < 1:
        pool = run.suite.data.get("pool")
        place = f" in its pool {pool}" if isinstance(pool, str) else ""
        raise KdepError(
            f"the data of suite {run.suite.name!r} has no pre-training images{place}",
            expected="a folder that exists and contains images",
            fix="add images to it, or correct `pool` in the data config",
        )
    if run.images < 1:
        batch = run.suite.budget.batch  # at least one batch is trained
        fraction = math.ceil(1000 * batch / run.pool) / 1000
        raise KdepError(
            f"{run.label} has {run.fraction:g} of {run.pool} images, which rounds to 0 images",
            fix=f"use a data fraction of {fraction:g} or more"
            if fraction < 1
            else "remove this data fraction, or add images to the pool and lower budget.batch",
        )


def check_epochs(run: CountedRun) -> None:
    """Checks that the images fill at least one batch, so that the budget's epochs can be run."""
    if run.images < 1:
        return  # see `check_nonempty_fraction`
    spec = {**run.suite.budget.spec(), "epochs": run.epochs}
    check_budget(spec, run.images, run.pool, run.fraction, run.label)


def check_alignment(run: CountedRun) -> None:
    """Checks that there are enough feature vectors (images x views) to fit the alignment.

    It needs at least one per direction.
    """
    if run.pool < 1:
        return  # see `check_nonempty_fraction`
    width = run.student["width"]
    for role_teacher in teachers_by_role(run.method, run.suite_teacher):
        if role_teacher.method.get("align"):
            config = role_teacher.config
            directions = min(width, (config and teacher_width(config)) or width)
            check_rows(
                run.images, run.suite.budget.views, directions, run.fraction, run.pool, run.label
            )


RUN_RULES: tuple[Callable[[CountedRun], None], ...] = (
    check_nonempty_fraction,
    check_epochs,
    check_alignment,
)


# ---- rules of a task ----

_FINE_TUNE = "kdep_bench.transfer.classification.FineTune"
_PROBE = "kdep_bench.transfer.classification.LinearProbe"


def check_fine_tuning_batch(data: Json, task: Json) -> None:
    """Checks that the training images of a fine-tuning task fill at least one batch."""
    if task["type"] != _FINE_TUNE:
        return
    folder, batch = f"{task['recipe']['folder']}/train", task["recipe"]["batch"]
    counts = known_data.images_per_class(data, folder)
    if counts is None or max(counts) >= known_data.MAX_PER_CLASS or sum(counts) >= batch:
        return
    raise KdepError(
        f"task {task['name']!r} has batches of {batch} images, but {folder} of the data "
        f"{data['name']!r} has only {sum(counts)}",
        fix=f"set `batch` in the task's recipe to {sum(counts)} or less, or add images",
    )


def check_linear_probe(data: Json, task: Json) -> None:
    """Checks that the training images of a linear probe have every class.

    That is, in every fold, or in both parts of the images that `train_share` divides.
    """
    if task["type"] != _PROBE:
        return
    recipe = task["recipe"]
    has_folds = recipe["protocol"] == "folds"
    folder = recipe["folder"] if has_folds else f"{recipe['folder']}/train"
    counts = known_data.images_per_class(data, folder)
    is_exact = bool(counts) and max(counts) < known_data.MAX_PER_CLASS
    if counts and (has_folds or is_exact):
        check_probe(recipe, counts, f"{folder} of the data {data['name']!r}")


TASK_RULES: tuple[Callable[[Json, Json], None], ...] = (
    check_fine_tuning_batch,
    check_linear_probe,
)


# ---- rules of a probe ----


def check_shots(suite: Suite, probe: Json) -> None:
    """Checks that every class has as many training images as a few-shot probe uses."""
    argument = class_value(probe["type"], "shots_argument")
    if not argument:
        return
    folder = f"{probe['folder']}/train"
    counts, largest = known_data.images_per_class(suite.data, folder), max(probe[argument])
    if counts is None or min(counts) >= min(largest, known_data.MAX_PER_CLASS):
        return
    raise KdepError(
        f"probe {probe['name']!r} uses {largest} training images per class, but the smallest class "
        f"of {folder} of the data {suite.data['name']!r} has {min(counts)}",
        fix=f"lower {argument!r} in the probe's config to {min(counts)} or less, or add images",
    )


def check_more_images_than_width(suite: Suite, probe: Json) -> None:
    """Checks that a probe that measures a rank has more images than the feature has dimensions."""
    if not class_value(probe["type"], "more_images_than_width"):
        return
    folder = f"{probe['folder']}/test"
    counts = known_data.images_per_class(suite.data, folder)
    if counts is None or max(counts) >= known_data.MAX_PER_CLASS:
        return
    for student in suite.students:
        if sum(counts) <= student["width"]:
            raise KdepError(
                f"probe {probe['name']!r} needs more images than the student {student['name']!r} "
                f"has dimensions ({student['width']}), but {folder} of the data "
                f"{suite.data['name']!r} has {sum(counts)} images",
                fix="add test images, or remove the probe",
            )


def check_class_texts(suite: Suite, probe: Json) -> None:
    """Checks that a probe's file of text embeddings has every class of the images."""
    argument = class_value(probe["type"], "text_argument")
    if not argument:
        return
    names = known_data.class_names(suite.data, f"{probe['folder']}/train")
    if names is None:
        return
    from kdep_bench.probes.text import read_text_embeddings

    read_text_embeddings(probe.get(argument)).for_classes(names)


PROBE_RULES: tuple[Callable[[Suite, Json], None], ...] = (
    check_shots,
    check_more_images_than_width,
    check_class_texts,
)

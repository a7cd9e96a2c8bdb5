"""What the numbers of images make impossible: asked before anything runs.

`check_counts` reads the folders of one's own data, each as far as a rule needs, and nothing else.
Each rule is a small function in a list, as in `pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdep_bench.errors import KdepError
from kdep_bench.features.policies import check_rows
from kdep_bench.pretrain.budgets import check_budget
from kdep_bench.suite import known_data
from kdep_bench.suite.arms import arms_of, assistant_of, teacher_width, trains
from kdep_bench.suite.schema import Json, Suite, uses_teacher
from kdep_bench.transfer.recipes import check_probe


@dataclass(frozen=True)
class Counted:
    """One arm at one data share, with its images.

    Attributes:
        base: the suite's teacher for that student.
        epochs: of this arm, which may be fewer than the budget's.
        images: of the share; `pool`: of all. Either is at least that many.
    """

    suite: Suite
    student: Json
    method: Json
    base: Json | None
    epochs: float
    share: float
    images: int
    pool: int

    @property
    def who(self) -> str:
        share = "" if self.share == 1 else f" at the data fraction {self.share:g}"
        return f"method {self.method['name']!r} on student {self.student['name']!r}{share}"


def check_counts(suite: Suite) -> None:
    """Refuses a suite whose data have too few images for an arm or a task: KdepError.

    Data that are not there, or of which nothing is known, are left to their preparation.
    """
    for part in suite.variants or [suite]:
        most = _enough(part)
        pool = known_data.pool_images(part.data, most)
        if pool is not None:
            _check_shares(part, pool, pool < most)
            for arm in _arms(part, pool):
                for rule in ARM_RULES:
                    rule(arm)
    for task in suite.tasks:
        for task_rule in TASK_RULES:
            task_rule(suite.data, task)


def _check_shares(suite: Suite, pool: int, exactly: bool) -> None:
    """Refuses two shares that are the same images: their rows would be called different."""
    if not exactly or suite.share_by != "image":
        return
    first: dict[int, float] = {}
    for share in suite.shares:
        other = first.setdefault(round(share * pool), share)
        if other != share:
            raise KdepError(
                f"the data fractions {other:g} and {share:g} of {pool} images select the same "
                f"{round(share * pool)} images",
                fix="remove one of them from `shares`",
            )


def _enough(suite: Suite) -> int:
    """A number of pool images with which no rule of an arm can fail."""
    budget, least = suite.budget, min(suite.shares)
    steps = 1.0 if budget.ema is None else math.log(0.5) / math.log(budget.ema) + 1
    assistants = [m["teacher"] for m in suite.methods if m.get("teacher")]
    widths = [s["width"] for s in [*suite.students, *(a["student"] for a in assistants)]]
    epochs = min([1.0, budget.epochs, *(a["epochs"] or 1.0 for a in assistants)])
    return math.ceil(max(budget.batch * steps / epochs, *widths) / least) + 2


def _arms(suite: Suite, pool: int) -> Iterator[Counted]:
    for student in suite.students:
        base = suite.teachers[student["name"]]
        for method in arms_of(suite, student):
            if trains(method):
                for share in suite.shares:
                    yield from _chain(
                        suite, student, method, base, suite.budget.epochs, share, pool
                    )


def _chain(
    suite: Suite,
    student: Json,
    method: Json,
    base: Json | None,
    epochs: float,
    share: float,
    pool: int,
) -> Iterator[Counted]:
    """The arm that teaches a method, if one does, and the arm itself."""
    told = method.get("teacher")
    if told is not None and uses_teacher(method):
        own = epochs if told["epochs"] is None else told["epochs"]
        yield from _chain(suite, told["student"], told["method"], base, own, share, pool)
    yield Counted(suite, student, method, base, epochs, share, round(share * pool), pool)


# ---- rules of an arm ----


def some_images(arm: Counted) -> None:
    """A share that leaves no image."""
    if arm.images < 1:
        raise KdepError(
            f"{arm.who} has {arm.share:g} of {arm.pool} images, which rounds to 0 images",
            fix=f"use a data fraction of {math.ceil(1000 / arm.pool) / 1000:g} or more",
        )


def budget(arm: Counted) -> None:
    """A budget that is not what it says on so few images."""
    spec = {**arm.suite.budget.spec(), "epochs": arm.epochs}
    check_budget(spec, arm.images, arm.pool, arm.share, arm.who)


def alignment(arm: Counted) -> None:
    """Fewer features than the directions that an alignment fits."""
    if not arm.method.get("align") or not uses_teacher(arm.method):
        return
    teacher = assistant_of(arm.method) or arm.base
    width = arm.student["width"]
    directions = min(width, (teacher and teacher_width(teacher)) or width)
    check_rows(arm.images, arm.suite.budget.views, directions, arm.share, arm.pool, arm.who)


ARM_RULES: tuple[Callable[[Counted], None], ...] = (some_images, budget, alignment)


# ---- rules of a task ----

_FINE_TUNE = "kdep_bench.transfer.classification.FineTune"
_PROBE = "kdep_bench.transfer.classification.LinearProbe"


def fine_tuning_batch(data: Json, task: Json) -> None:
    """A batch of a fine-tuning that its training images do not fill: they would give no step."""
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
    """A linear probe whose split or folds leave a class without an image."""
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

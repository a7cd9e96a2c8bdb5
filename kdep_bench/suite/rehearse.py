"""Rehearsal of a suite: a test run of all its stages that takes minutes on a CPU.

The rehearsal uses the suite's configs and code. It changes only the values in this module (function
`changes` describes them, for --dry-run): numbers of steps, batch sizes, numbers of images, sizes in
pixels and the width of task heads. The data are generated in the real format of each data set. The
scores mean nothing. The rehearsal has another name, other data and therefore other stage ids.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.signatures import argument_names
from kdep_bench.suite.kinds import KINDS
from kdep_bench.suite.methods import with_role_teachers
from kdep_bench.suite.schema import Json, Suite

PX = 32  # input side of students in pixels: their last feature map is 1 x 1 (stride 32)
TEACHER_PX = 28  # a multiple of every teacher's patch size (4 for Swin, 14 for DINOv2)
IMAGES = 96  # pool images of the generated ImageNet, data/official/imagenet.py
# Replaces every data fraction below 1. A small fraction of so few images would need many views per
# image, because the SVD needs as many samples as the student is wide.
FRACTION = 0.875
STEPS, BATCH = 2, 16
ACCUMULATE = 2  # micro-batches of a batch, if the suite has more
COST = 4.0  # estimated seconds per stage; the defaults of the kinds assume real data
NOTE = "a rehearsal on tiny data with random teacher weights: its scores mean nothing"
OFFICIAL = "kdep_bench.data.official.stage.prepare"
# Key of a task's recipe -> its value in a rehearsal.
RECIPE: dict[str, Any] = {
    "epochs": 1,
    "step_epochs": 1,
    "iters": 2,
    "warmup": 1,
    "batch": 2,
    "test_batch": 4,
    "workers": 0,
    "scale": [64, 32],
    "crop": [32, 32],
    "scales": [32],
    "test_scale": 32,
    "long_edge": 64,
    "max_iter": 20,
}
CLASSIFICATION_BATCH = 8
# Argument of an objective -> its value in a rehearsal. `regions` at most 2: TEACHER_PX is 2 x 2
# patches of 14 pixels. `prototypes` at most 8: a student's last map has one position per image of a
# micro-batch (BATCH / ACCUMULATE images).
OBJECTIVE = {"regions": 2, "prototypes": 4}
# Keys that lead to a value in a recipe's model -> the value in a rehearsal. These numbers of
# channels and RoIs determine most of the time of a transfer of two steps.
MODEL: dict[tuple[str, ...], int] = {
    ("decode_head", "channels"): 16,
    ("auxiliary_head", "channels"): 16,
    ("rpn_head", "feat_channels"): 16,
    ("roi_head", "bbox_head", "fc_out_channels"): 16,
    ("train_cfg", "rpn_proposal", "max_per_img"): 4,
    ("test_cfg", "rpn", "max_per_img"): 4,
}


def changes() -> str:
    """Text that lists what a rehearsal changes."""
    recipe = ", ".join(f"{k} {v}" for k, v in RECIPE.items())
    model = ", ".join(f"{'.'.join(k)} {v}" for k, v in MODEL.items())
    objective = ", ".join(f"{k} {v}" for k, v in OBJECTIVE.items())
    return (
        "A rehearsal runs the suite's stages, configs and code. It changes: data (tiny copies in "
        f"the real formats, {IMAGES} pool images); teachers (random weights, {TEACHER_PX} px); "
        f"students' input ({PX} px); pre-training ({STEPS} steps of {BATCH} in at most "
        f"{ACCUMULATE} micro-batches, one budget and one seed per data fraction, {FRACTION:g} "
        "instead of fractions below 1, enough views for the SVD); arguments of objectives, if they "
        f"have these: {objective}; transfer recipes, if "
        f"they have these keys: {recipe} (batch {CLASSIFICATION_BATCH} in classification); heads: "
        f"{model}. Its scores are meaningless."
    )


def shrink_task(task: Json) -> Json:
    """A task config with small values for the recipe keys that determine its time."""
    task = copy.deepcopy(task)
    recipe = task["recipe"]
    for key, value in RECIPE.items():
        if key in recipe:
            recipe[key] = value
    if task["family"] == "classification" and "batch" in recipe:
        recipe["batch"] = CLASSIFICATION_BATCH
    for path, value in MODEL.items():
        inner = recipe.get("model") or {}
        for key in path[:-1]:
            inner = inner.get(key) or {}
        if path[-1] in inner:
            inner[path[-1]] = value
    return task


def rehearsed(suite: Suite) -> Suite:
    """The suite that rehearses `suite`: one budget per data fraction and one pair of seeds.

    Teachers have random weights (with a fixed seed), are named `random_...`, and get small images.
    There are enough views per image for the SVD to the width of the widest student.

    Raises:
        KdepError: the suite's data are not official data sets.
    """
    if suite.data.get("type") != OFFICIAL:
        raise KdepError(
            f"the suite {suite.name!r} cannot be rehearsed, because its data "
            f"{suite.data['name']!r} are not official sets",
            expected=f"data of type {OFFICIAL}",
            fix="run the suite `smoke` instead, which rehearses the pocket suites",
        )
    data = {k: v for k, v in suite.data.items() if k not in ("root", "decode", "pool_classes")}
    seeds = suite.seeds.model_copy(
        update={"pretrain": suite.seeds.pretrain[:1], "transfer": suite.seeds.transfer[:1]}
    )
    runtime = suite.runtime.model_copy(update={"cost": dict.fromkeys(KINDS, COST)})
    common = {
        "name": f"rehearsal_{suite.name}",
        "data": {**data, "name": "rehearsal", "tiny_seed": 0, "scores_note": NOTE},
        "students": [{**s, "input_px": PX} for s in suite.students],
        "tasks": [shrink_task(t) for t in suite.tasks],
        "seeds": seeds,
        "runtime": runtime,
        "claims": [],
    }
    variants = [
        rehearsed_variant
        for variant in suite.variants or [suite]
        for rehearsed_variant in _variants(variant.model_copy(update=common))
    ]
    return suite.model_copy(update={**common, "variants": variants})


def _variants(suite: Suite) -> list[Suite]:
    """One variant per data fraction: STEPS steps are a different number of epochs in each."""
    n_samples = max(s["width"] for s in suite.students) * 1.1  # 10 % more than the SVD needs
    views = math.ceil(n_samples / (IMAGES * FRACTION))
    teachers = {k: t and _teacher(t) for k, t in suite.teachers.items()}
    methods = [_with_small_objectives(with_role_teachers(m, _teacher)) for m in suite.methods]
    common = {"teachers": teachers, "methods": methods}
    out = []
    for fraction in sorted({1.0 if s == 1 else FRACTION for s in suite.shares}, reverse=True):
        epochs = STEPS * BATCH / (IMAGES * fraction)
        accumulate = min(suite.budget.accumulate, ACCUMULATE)
        change: Json = {
            "epochs": epochs,
            "batch": BATCH,
            "views": views,
            "accumulate": accumulate,
        }
        budget = suite.budget.model_copy(update=change)
        out.append(suite.model_copy(update={"shares": [fraction], "budget": budget, **common}))
    return out


def _with_small_objectives(config: Any) -> Any:
    """A method config with the values of OBJECTIVE in all classes that have these arguments."""
    if isinstance(config, list):
        return [_with_small_objectives(value) for value in config]
    if not isinstance(config, dict):
        return config
    names = argument_names(config.get("type"))
    small = {k: v for k, v in OBJECTIVE.items() if k in names}
    return {k: _with_small_objectives(v) for k, v in config.items()} | small


def _teacher(teacher: Json) -> Json:
    """The teacher config with random weights and a small input.

    For a black box, the teacher inside it is changed.
    """
    name = f"random_{teacher['name']}"
    if isinstance(inside := teacher.get("teacher"), dict):
        return {**teacher, "name": name, "teacher": _teacher(inside)}
    return {**teacher, "name": name, "input_px": TEACHER_PX, "weights": "random"}

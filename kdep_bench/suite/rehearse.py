"""Rehearsal of a suite: every stage with the same configs and code, minutes on a CPU.

All changes are listed here (`changes` describes them, for --dry-run): numbers of steps, batches and
images, sizes in pixels, and the width of task heads. Data are generated in the real format of each
set. Scores of a rehearsal are meaningless; its name, its data and therefore all its stage ids
differ from the suite's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.suite.kinds import KINDS
from kdep_bench.suite.methods import with_role_teachers
from kdep_bench.suite.schema import Json, Suite

PX = 32  # input side of students: one position left after their last stage
TEACHER_PX = 28  # a multiple of every teacher's patch (4 for Swin, 14 for DINOv2)
IMAGES = 96  # of the tiny ImageNet, data/official/imagenet.py
# For every data fraction below 1: a tenth of the tiny pool would need ten times the views.
FRACTION = 0.875
STEPS, BATCH = 2, 16
COST = 4.0  # estimated seconds per stage; the defaults of the kinds assume real data
NOTE = "a rehearsal on tiny data with random teacher weights: its scores mean nothing"
OFFICIAL = "kdep_bench.data.official.stage.prepare"
# Key of a recipe -> its value in a rehearsal.
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
# Place in a recipe's model -> its value: channels of heads, which are built, initialised and
# stepped in every transfer, and RoIs of an untrained detector, each of which costs a stage.
MODEL: dict[tuple[str, ...], int] = {
    ("decode_head", "channels"): 16,
    ("auxiliary_head", "channels"): 16,
    ("rpn_head", "feat_channels"): 16,
    ("roi_head", "bbox_head", "fc_out_channels"): 16,
    ("train_cfg", "rpn_proposal", "max_per_img"): 4,
    ("test_cfg", "rpn", "max_per_img"): 4,
}


def changes() -> str:
    """Description of what a rehearsal changes."""
    recipe = ", ".join(f"{k} {v}" for k, v in RECIPE.items())
    model = ", ".join(f"{'.'.join(k)} {v}" for k, v in MODEL.items())
    return (
        "A rehearsal runs the suite's stages, configs and code. It changes: data (tiny copies in "
        f"the real formats, {IMAGES} pool images); teachers (random weights, {TEACHER_PX} px); "
        f"students' input ({PX} px); pre-training ({STEPS} steps of {BATCH}, one budget and one "
        f"seed per data fraction, {FRACTION:g} for fractions below 1, as many views as an SVD "
        f"needs rows); transfer recipes, where they have these keys: {recipe} (batch "
        f"{CLASSIFICATION_BATCH} in classification); heads: {model}. Its scores are meaningless."
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
    for place, value in MODEL.items():
        cfg = recipe.get("model") or {}
        for key in place[:-1]:
            cfg = cfg.get(key) or {}
        if place[-1] in cfg:
            cfg[place[-1]] = value
    return task


def rehearsed(suite: Suite) -> Suite:
    """The rehearsal of a suite: one budget per data fraction, and one pair of seeds.

    Teachers have seeded random weights, are named `random_...`, and see small images. There are as
    many views as the SVD to the widest student needs rows.

    Raises:
        KdepError: the suite's data are not official sets.
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
    parts = [_variants(v.model_copy(update=common)) for v in suite.variants or [suite]]
    return suite.model_copy(update={**common, "variants": [p for each in parts for p in each]})


def _variants(suite: Suite) -> list[Suite]:
    """One variant per data fraction, because the epochs that make STEPS steps differ."""
    rows = max(s["width"] for s in suite.students) * 1.1
    views = math.ceil(rows / (IMAGES * FRACTION))
    teachers = {k: t and _teacher(t) for k, t in suite.teachers.items()}
    methods = [with_role_teachers(m, _teacher) for m in suite.methods]
    common = {"teachers": teachers, "methods": methods}
    out = []
    for fraction in sorted({1.0 if s == 1 else FRACTION for s in suite.shares}, reverse=True):
        epochs = STEPS * BATCH / (IMAGES * fraction)
        change: Json = {"epochs": epochs, "batch": BATCH, "views": views}
        budget = suite.budget.model_copy(update=change)
        out.append(suite.model_copy(update={"shares": [fraction], "budget": budget, **common}))
    return out


def _teacher(teacher: Json) -> Json:
    name = f"random_{teacher['name']}"
    return {**teacher, "name": name, "input_px": TEACHER_PX, "weights": "random"}

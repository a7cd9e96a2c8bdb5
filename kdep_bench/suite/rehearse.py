"""A suite shrunk for a rehearsal: every stage, the same configs and code, minutes on a CPU.

What changes is listed here and nowhere else: counts of steps, batches and images, and sizes in
pixels. Data are generated in each set's real format. Scores of a rehearsal mean nothing; its name,
its data and therefore all its stage ids differ from the suite's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import Json, Suite

PX = 64  # input side of students
TEACHER_PX = 28  # a multiple of every teacher's patch (4 for Swin, 14 for DINOv2)
IMAGES = 96  # of the tiny ImageNet, data/official/imagenet.py
SHARE = 0.5  # stands for every share below 1: a tenth of the tiny pool could fix no basis
STEPS, BATCH = 2, 32
OFFICIAL = "kdep_bench.data.official.stage.prepare"
# Key of a recipe -> its value in a rehearsal.
RECIPE: dict[str, Any] = {
    "epochs": 1,
    "iters": 2,
    "warmup": 1,
    "batch": 2,
    "test_batch": 4,
    "workers": 0,
    "scale": [96, 64],
    "crop": [64, 64],
    "scales": [64],
    "test_scale": 64,
    "long_edge": 96,
    "max_iter": 20,
}
CLASSIFICATION_BATCH = 8
PROPOSALS = 16  # RoIs of an untrained detector are many, and each costs a stage of the backbone


def shrink_task(task: Json) -> Json:
    """A task config with the numbers of its recipe that cost time made small."""
    task = copy.deepcopy(task)
    recipe = task["recipe"]
    for key, value in RECIPE.items():
        if key in recipe:
            recipe[key] = value
    if task["family"] == "classification" and "batch" in recipe:
        recipe["batch"] = CLASSIFICATION_BATCH
    model = recipe.get("model") or {}
    for place in (("train_cfg", "rpn_proposal"), ("test_cfg", "rpn")):
        cfg = model.get(place[0], {}).get(place[1])
        if cfg is not None:
            cfg["max_per_img"] = PROPOSALS
    return task


def rehearsed(suite: Suite) -> Suite:
    """The suite's rehearsal. Budgets of one share become one, and so do seeds.

    Teachers have seeded random weights, are named `random_...`, and see small pictures. Views are
    as many as an SVD to the widest student needs rows.

    Raises:
        KdepError: a suite whose data are not official sets.
    """
    if suite.data.get("type") != OFFICIAL:
        raise KdepError(
            f"the suite {suite.name!r} reads the data {suite.data['name']!r}, which cannot be "
            "rehearsed",
            f"data of type {OFFICIAL}",
            "run the suite `smoke`, which rehearses the pocket suites",
        )
    data = {k: v for k, v in suite.data.items() if k not in ("root", "decode")}
    seeds = suite.seeds.model_copy(
        update={"pretrain": suite.seeds.pretrain[:1], "transfer": suite.seeds.transfer[:1]}
    )
    whole = {
        "name": f"rehearsal_{suite.name}",
        "data": {**data, "name": "rehearsal", "tiny_seed": 0},
        "students": [{**s, "input_px": PX} for s in suite.students],
        "tasks": [shrink_task(t) for t in suite.tasks],
        "seeds": seeds,
        "claims": [],
    }
    parts = [_part(v.model_copy(update=whole)) for v in suite.variants or [suite]]
    return suite.model_copy(update={**whole, "variants": [p for each in parts for p in each]})


def _part(suite: Suite) -> list[Suite]:
    """One variant for each share, as the number of epochs that makes STEPS steps differs."""
    rows = max(s["width"] for s in suite.students) * 1.1
    views = math.ceil(rows / (IMAGES * SHARE))
    teachers = {k: t and _teacher(t) for k, t in suite.teachers.items()}
    out = []
    for share in sorted({1.0 if s == 1 else SHARE for s in suite.shares}, reverse=True):
        epochs = STEPS * BATCH / (IMAGES * share)
        change: Json = {"epochs": epochs, "batch": BATCH, "views": views}
        budget = suite.budget.model_copy(update=change)
        out.append(
            suite.model_copy(update={"shares": [share], "budget": budget, "teachers": teachers})
        )
    return out


def _teacher(teacher: Json) -> Json:
    name = f"random_{teacher['name']}"
    return {**teacher, "name": name, "input_px": TEACHER_PX, "weights": "random"}

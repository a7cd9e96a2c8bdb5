"""A suite shrunk for a rehearsal: every stage, the same configs and code, minutes on a CPU.

What changes is listed here and nowhere else: counts of steps, batches and images, and sizes in
pixels. Data are generated in each set's real format. Scores of a rehearsal mean nothing; its name,
its data and therefore all its stage ids differ from the suite's.
"""

from __future__ import annotations

import copy
from typing import Any

from kdep_bench.suite.config import Json

PX = 64
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

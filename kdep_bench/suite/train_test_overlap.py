"""Notes on teachers and weights that were trained on the test data of a task.

The `card` of a teacher, or of a method that starts from given weights, states its training data:
`trained_on=["imagenet", "coco"]`. A task is evaluated on the data sets in its `tests_on`. The
default is its official set (`recipe.set`) or, without one, the suite's data. No stage reads these
keys, so changing them reruns no stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdep_bench.errors import KdepError

Json = dict[str, Any]

# Other names of a data set, in lower case and without punctuation.
ALIASES = {
    "imagenet1k": "imagenet",
    "ilsvrc2012": "imagenet",
    "in1k": "imagenet",
    "imagenet22k": "imagenet21k",
    "in21k": "imagenet21k",
    "in22k": "imagenet21k",
    "mscoco": "coco",
    "coco2014": "coco",
    "coco2017": "coco",
    "pascalvoc": "voc",
    "voc2007": "voc",
    "voc2012": "voc",
    "voc0712": "voc",
    "cub": "cub200",
    "cub2002011": "cub200",
}
# Data set -> data sets whose images it contains. LVD-142M contains the training images of
# ImageNet-21k, and images that were retrieved because they are similar to images of the other sets
# (Oquab et al. 2023, DINOv2, table 15).
INCLUDED_SETS = {
    "foggy_cityscapes": ("cityscapes",),
    "imagenet21k": ("imagenet",),
    "lvd142m": ("imagenet21k", "imagenet", "caltech101", "cub200", "dtd", "ade20k", "cityscapes"),
}


def trained_on(config: Mapping[str, Any] | None) -> list[str]:
    """`card.trained_on` of a teacher or method.

    Raises:
        KdepError: `trained_on` is not a list of names.
    """
    card = (config or {}).get("card") or {}
    name = (config or {}).get("name")
    return _names(card.get("trained_on"), f"card.trained_on of {name!r}")


def tests_on(task: Mapping[str, Any], data: str) -> list[str]:
    """Names of the data sets that a task is scored on; `data` is the name of the suite's data.

    Raises:
        KdepError: `tests_on` is not a list of names.
    """
    names = _names(task.get("tests_on"), f"tests_on of the task {task.get('name')!r}")
    return names or [str((task.get("recipe") or {}).get("set") or data)]


def _names(value: Any, where: str) -> list[str]:
    """`value` if it is a list of names, [] for None; `where` is what an error calls it."""
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(
        isinstance(v, str) and _key(v) for v in value
    ):
        raise KdepError(
            f"{where} is {value!r:.60}",
            expected="a list of data set names",
            fix='write for example ["imagenet"]',
        )
    return list(value)


def _key(name: str) -> str:
    """The name by which data sets are compared; aliases of a data set have the same key."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return ALIASES.get(plain, plain)


def overlap_notes(
    trained: Sequence[Mapping[str, Any] | None], task: Mapping[str, Any], data: str
) -> list[str]:
    """A sentence for each network that was trained on the data that the task is evaluated on.

    Args:
        trained: configs of teachers and of methods with given weights.
        task: config of the task.
        data: name of the suite's data.
    """
    notes = []
    for config in trained:
        for name in trained_on(config):
            training_sets = {_key(name), *INCLUDED_SETS.get(_key(name), ())}
            for tested in tests_on(task, data):
                if _key(tested) in training_sets:
                    assert config is not None
                    notes.append(
                        f"{config['name']} was trained on {name}, and this task is evaluated on "
                        f"{tested}"
                    )
    return list(dict.fromkeys(notes))

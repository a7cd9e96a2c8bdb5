"""Planning checks that a user's data config fits the tasks and methods of the suite."""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import build_suite
from kdep_bench.suite.plan import build_plan

CLASSES = ["bg", "red", "blue"]


def plan(data: dict[str, Any], recipe: dict[str, Any], **change: Any) -> None:
    """Plans a suite with a segmentation task on a user's data."""
    masks = {s: {"images": f"i/{s}", "masks": f"m/{s}"} for s in ("train", "test")}
    data_config = {
        "type": "kdep_bench.data.own.prepare",
        "name": "case",
        "pool": "p",
        "masks": masks,
    }
    suite = {
        "name": "tiny",
        "data": {**data_config, "classes": CLASSES, "labels": False, **data},
        "students": ["resnet18_w32"],
        "methods": ["scratch"],
        "tasks": [{"base": "pocket_seg", "name": "case_seg", "recipe": recipe}],
        "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
        "seeds": {"pretrain": [0], "transfer": [0]},
    }
    build_plan(build_suite({**suite, **change}))


PALETTE = [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_recipe_classes_equal_to_those_of_the_masks_are_accepted() -> None:
    plan({}, {"classes": CLASSES, "palette": PALETTE})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["bg", "blue", "red"], "shown for the wrong classes"),
        (["bg", "red", "Blue"], "('bg', 'red', 'Blue')"),
        (["bg", "red"], "('bg', 'red', 'blue')"),
    ],
)
def test_recipe_classes_that_differ_from_those_of_the_masks_are_refused(
    classes: list[str], message: str
) -> None:
    with pytest.raises(KdepError) as error:
        plan({}, {"classes": classes, "palette": PALETTE[: len(classes)]})
    assert message in str(error.value)
    assert "set classes=('bg', 'red', 'blue')" in str(error.value)


def test_a_palette_with_fewer_colours_than_classes_is_refused() -> None:
    with pytest.raises(KdepError, match="a palette of 2 colours for 3 classes"):
        plan({}, {"classes": CLASSES, "palette": PALETTE[:2]})


def test_labels_without_pool_labels_are_refused() -> None:
    with pytest.raises(KdepError, match="labels=True but not pool_labels=True"):
        plan({"labels": True}, {"classes": CLASSES, "palette": PALETTE})

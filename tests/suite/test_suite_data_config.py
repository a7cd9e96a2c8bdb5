"""Planning checks that a user's data config fits the tasks and methods of the suite."""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import build_suite, load_config
from kdep_bench.suite.known_data import prepared_spec
from kdep_bench.suite.plan import build_plan

CLASSES = ["bg", "red", "blue"]
SUITE = {
    "name": "tiny",
    "students": ["resnet18_w32"],
    "methods": ["scratch"],
    "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
    "seeds": {"pretrain": [0], "transfer": [0]},
}


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
        **SUITE,
        "data": {**data_config, "classes": CLASSES, "labels": False, **data},
        "tasks": [{"base": "pocket_seg", "name": "case_seg", "recipe": recipe}],
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


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        ({"pool": None}, ["the data config has no `pool`"]),
        ({"masks": ["m/train"]}, ["the data config has masks = ['m/train']"]),
        (
            {"coco": {"train": "a.json", "test": {"file": "a.json", "images": "i"}}, "classify": 5},
            [
                "the data config has classify = 5",
                "the data config has coco.train = 'a.json'",
                "coco.test of the data config has the keys ['file', 'images']",
            ],
        ),
        (
            {"labels": "no", "pool_labels": 0},
            ["the data 'case' has labels = 'no'", "the data 'case' has pool_labels = 0"],
        ),
    ],
)
def test_values_of_wrong_types_are_refused_when_the_suite_is_planned(data, problems) -> None:
    with pytest.raises(KdepError) as error:
        plan(data, {"classes": CLASSES, "palette": PALETTE})
    assert [e.problem for e in error.value.faults or (error.value,)] == problems


def test_values_of_wrong_types_of_the_pocket_data_are_refused_when_the_suite_is_planned() -> None:
    data = {"base": "smoke", "px": "128", "scenes": 7, "source": "deb"}
    with pytest.raises(KdepError) as error:
        build_plan(build_suite({**SUITE, "data": data}))
    problems = [fault.problem for fault in error.value.faults]
    assert problems[:2] == ["the pocket data has scenes = 7", "the pocket data has px = '128'"]
    assert "unknown source 'deb'" in problems[2]


def test_the_source_of_the_pocket_data_reaches_the_stage_that_makes_them() -> None:
    smoke = load_config("data", "smoke")
    assert prepared_spec({**smoke, "source": "pip-only"})["source"] == "pip-only"
    spec = prepared_spec(smoke)  # the default is not in the stage's id
    assert smoke["source"] == "auto"
    assert "source" not in spec
    assert "source" not in prepared_spec({"type": "kdep_bench.data.own.prepare", "source": "me"})

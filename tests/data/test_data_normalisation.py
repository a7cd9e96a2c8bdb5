"""A teacher whose normalisation has another pixel scale than 0-255 is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdep_bench.data.normalisation import MEAN, STD, check_normalisation, check_stated
from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import Teacher, TeacherOutput

CAFFE = ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0))  # networks from Caffe subtract only the mean
VALID = [
    (MEAN, STD),
    ((127.5,) * 3, (127.5,) * 3),
    ((122.770938, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),  # CLIP
    ((0, 0, 0), (255, 255, 255)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    CAFFE,
    ((-31.875,) * 3, (318.75,) * 3),  # mmpretrain, EfficientNet for edge devices
    ((33.0, 34.0, 35.0), (78.0, 79.0, 80.0)),  # dark images
]
INVALID: dict[str, tuple[Any, Any]] = {
    "0-1 scale": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean of the 0-1 scale": ((0.485, 0.456, 0.406), STD),
    "deviation of the 0-1 scale": (MEAN, (0.229, 0.224, 0.225)),
    "a half on the 0-1 scale": ((0.5,) * 3, (0.5,) * 3),
    "scaled twice": (tuple(255 * v for v in MEAN), tuple(255 * v for v in STD)),
    "deviation of 0": (MEAN, (58.0, 0.0, 57.0)),
    "negative deviation": (MEAN, (58.0, -57.0, 57.0)),
    "negative mean": ((-123.0, -116.0, -103.0), STD),
    "one channel": ((127.5,), (127.5,)),
    "a number": (127.5, 127.5),
    "four channels": ((127.5,) * 4, (127.5,) * 4),
    "NaN": ((float("nan"), 116.0, 103.0), STD),
    "infinite": (MEAN, (58.0, float("inf"), 57.0)),
    "text": (("123", "116", "103"), STD),
    "truth values": (MEAN, (True, True, True)),
    "mean and std exchanged": (STD, MEAN),
    "BGR": (MEAN[::-1], STD[::-1]),
    "a text": ("imagenet", STD),
}


@pytest.mark.parametrize(("mean", "std"), VALID)
def test_normalisations_of_published_networks_are_accepted(mean: Any, std: Any) -> None:
    check_normalisation(mean, std, "x")
    check_normalisation(list(mean), list(std), "x")


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_normalisation_is_refused(name: str) -> None:
    with pytest.raises(KdepError, match=r"^x normalises with .*0-255 scale"):
        check_normalisation(*INVALID[name], "x")


@pytest.mark.parametrize("name", ["0-1 scale", "scaled twice", "mean and std exchanged", "BGR"])
def test_the_fix_in_the_error_gives_a_valid_normalisation(name: str) -> None:
    mean, std = INVALID[name]
    with pytest.raises(KdepError) as caught:
        check_normalisation(mean, std, "x")
    fix = caught.value.fix
    if "multiply" in fix:
        mean, std = [255 * v for v in mean], [255 * v for v in std]
    elif "divide" in fix:
        mean, std = [v / 255 for v in mean], [v / 255 for v in std]
    elif "exchanged" in fix:
        mean, std = std, mean
    else:
        assert "reverse" in fix
        mean, std = mean[::-1], std[::-1]
    check_normalisation(mean, std, "x")


class MeanColour(Teacher):
    """A teacher whose feature is the mean colour."""

    name, width, input_px, has_logits, tap = "plain", 3, 8, False, "the mean"

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        return TeacherOutput(x_B3HW.mean((2, 3)), None)


def test_a_teacher_with_a_wrong_normalisation_is_not_built() -> None:
    for mean, std in INVALID.values():
        with pytest.raises(KdepError, match=r"the teacher \(MeanColour\) normalises"):
            MeanColour(mean, std)
    grey = torch.full((2, 3, 8, 8), 127, dtype=torch.uint8)
    assert MeanColour(MEAN, STD)(grey).pooled.abs().max() < 0.5  # the mean grey is near 0


def test_a_mean_without_a_std_or_a_std_without_a_mean_is_refused() -> None:
    with pytest.raises(KdepError, match="has mean but no std"):
        check_stated({"name": "x", "mean": MEAN})
    with pytest.raises(KdepError, match="has std but no mean"):
        check_stated({"name": "x", "std": STD, "mean": None})
    check_stated({"name": "x"})


def test_a_suite_with_a_wrong_normalisation_is_not_planned(tmp_path: Path) -> None:
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.plan import build_plan

    path = tmp_path / "suite.py"
    for stated, sentence in (
        ("mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)", "0-1 scale"),
        ("mean=(123.675, 116.28, 103.53)", "has mean but no std"),
    ):
        teacher = f"dict(base='resnet50', {stated})"
        path.write_text(
            "suite = dict(name='x', data='smoke', students=['resnet18_w32'], methods=['kdep'], "
            f"teacher={teacher}, tasks=['smoke_probe'], budget=dict(epochs=1, views=1, batch=8, "
            "schedule='cosine', warmup=0.1, optimizer=dict(type='SGD', lr=0.05)), "
            "seeds=dict(pretrain=[0], transfer=[0]))\n"
        )
        with pytest.raises(KdepError, match=f"teacher 'resnet50'.*{sentence}"):
            build_plan(load_suite(str(path)))


def test_a_task_recipe_cannot_change_the_students_normalisation() -> None:
    from kdep_bench.data.normalisation import check_recipe
    from kdep_bench.suite.config import resolve

    task = resolve("task", "pocket_det")
    check_recipe(task)
    preprocessor = task["recipe"]["model"]["data_preprocessor"]
    preprocessor["mean"] = list(MEAN)
    check_recipe(task)
    for key, value in (("mean", [0.485, 0.456, 0.406]), ("std", [1.0]), ("std", 1)):
        preprocessor.update({"mean": None, "std": None, key: value})
        with pytest.raises(KdepError, match=f"model of task 'pocket_det' sets {key}"):
            check_recipe(task)

"""`kdep-bench pick`: the choice between teachers from a folder of images, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdep_bench.cli import pick

SUITE = """
lite0 = "efficientnet_lite0"
suite = dict(
    name="teachers", data="smoke", students=["resnet18_w32"], methods=["kdep"],
    teacher=dict(base=lite0, input_px=32),
    variants=[
        dict(teacher=dict(base=lite0, input_px=32)),
        dict(teacher=dict(base=lite0, name="other", input_px=32, weights="random")),
        dict(methods=["kdep_assistant", "self_distillation", "weighted_assistants"]),
        dict(methods=["tinyvit"], teacher=lite0 + "_black_box"),
    ],
    tasks=["smoke_probe"],
    budget=dict(epochs=1, batch=8, optimizer=dict(type="SGD", lr=0.1)),
    seeds=dict(pretrain=[0], transfer=[0]),
)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with twelve images of different sizes, two of them in a sub-folder."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(12):
        pixels = rng.integers(0, 255, (3 + i % 3, 4, 3), dtype=np.uint8)
        size = (40 + 10 * i, 60)
        Image.fromarray(pixels).resize(size).save(folder / ("more" * (i > 9)) / f"{i:02}.png")
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "teachers.py"
    path.write_text(SUITE)
    return str(path)


def test_a_suite_s_teachers_are_ranked_and_teachers_that_cannot_be_ranked_are_listed(
    images: Path, suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", suite, "--images", str(images), "--count", "10"]
    assert pick.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    values = [t["values"]["participation ratio"] for t in result["teachers"]]
    assert values == sorted(values, reverse=True)
    assert result["choice"] == result["teachers"][0]["name"]
    assert {t["name"] for t in result["teachers"]} == {"efficientnet_lite0", "other"}
    assert len({t["checksum"] for t in result["teachers"]}) == 2
    assert result["images"] == 10
    assert "explained variance" not in result["teachers"][0]["values"]  # 10 images, 256 channels
    pretrained_note, black_box_note = result["notes"][-2:]
    expected = ("w48.kdep", "w32.supervised", "w48.held_out_kd", "w40.held_out_kd")
    assert all(f"resnet18_{name}" in pretrained_note for name in expected), pretrained_note
    assert black_box_note == (
        "not ranked, because only class probabilities of these can be read: "
        "efficientnet_lite0_black_box"
    )
    assert pick.main([*arguments, "--by", "mean cosine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "mean cosine" in lines[0]
    lowest = min(result["teachers"], key=lambda t: t["values"]["mean cosine"])["name"]
    assert lines[1].startswith(lowest)
    assert f"take {lowest}: the lowest mean cosine, 10 images" in lines


@pytest.mark.parametrize(
    ("width", "message"),
    [([], "unknown number of channels"), (["--width", "12"], "student with 12 channels")],
)
def test_a_measure_that_is_not_defined_for_the_images_is_refused_before_a_teacher_runs(
    images: Path, width: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = ["efficientnet_lite0", "efficientnet_lite2", "--images", str(images)]
    assert pick.main([*teachers, *width, "--by", "explained variance"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert "12 images\n" not in printed.err  # which is printed when a teacher is measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["efficientnet_lite0"], "one teacher to choose from"),
        ([], "no teachers to choose from"),
        (["efficientnet_lite0", "efficientnet_lite9"], "efficientnet_lite9"),
        (["efficientnet_lite0", "efficientnet_lite2", "--count", "3"], "--count is 3"),
        (["efficientnet_lite0", "efficientnet_lite2", "--width", "0"], "--width is 0"),
        (["efficientnet_lite0", "efficientnet_lite2"], "contains 0 images"),
    ],
)
def test_wrong_arguments_are_explained(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert pick.main([*arguments, "--images", str(tmp_path / "empty")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_folder_of_images_is_named_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    assert pick.main(["efficientnet_lite0", "efficientnet_lite2", "--images", str(gone)]) == 2
    assert capsys.readouterr().err.endswith(
        f"the folder {gone} (--images) does not exist. Fix: correct --images.\n"
    )


def test_two_teachers_with_one_name_and_different_settings_are_refused(
    images: Path, suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The suite's teacher of this name has input_px=32.
    arguments = ["efficientnet_lite0", "--suite", suite, "--images", str(images)]
    assert pick.main(arguments) == 2
    assert "two different teachers are named 'efficientnet_lite0'" in capsys.readouterr().err


def test_a_black_box_on_the_command_line_is_refused_before_a_teacher_is_measured(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["efficientnet_lite0", "efficientnet_lite0_black_box"]
    assert pick.main([*names, "--images", str(images), "--count", "10"]) == 2
    shown = capsys.readouterr().err
    assert "only class probabilities of efficientnet_lite0_black_box can be read" in shown
    assert "10 images" not in shown  # which is printed when a teacher is measured

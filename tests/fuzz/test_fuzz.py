"""Reading a damaged file of any kind succeeds or raises KdepError: a short run of `make fuzz`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdep_bench.data.checks import check_coco
from kdep_bench.data.official.base import get_set, verify
from kdep_bench.engine.stage import read_stage, write_plan
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import build_plan
from tests.fuzz.__main__ import run
from tests.fuzz.targets import COCO, TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_fuzzed_file_raises_only_kdep_error(target):
    out = run(target, inputs=20, seed=0, seconds=20, keep=None)
    assert not out.faults
    assert out.refused > 0


# Faults that fuzzing found, each with the input that caused it.


@pytest.mark.parametrize("value", [{}, [], [1], True, 1.0, "1", None, 10**18])
@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_unknown_or_non_integer_id_raises_kdep_error(tmp_path: Path, key: str, value: Any):
    table = json.loads(json.dumps(COCO))
    table["annotations"][0][key] = value
    (tmp_path / "a.json").write_text(json.dumps(table))
    with pytest.raises(KdepError, match=r"annotation 5 in .*a\.json"):
        check_coco(tmp_path / "a.json")


def tiny_set(root: Path, name: str):
    """The official set, with its tiny copy under `root`."""
    dataset = get_set(name)
    (root / name).mkdir()
    dataset.tiny(root / name, np.random.default_rng(0))
    return dataset


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("categories", 5),
        ("categories", []),
        ("categories", "x"),
        ("categories", {"id": 1}),
        ("categories", {"name": "person"}),
        ("images", [1]),
        ("images", 0.5),
        ("images", {"id": [], "file_name": "a.jpg", "width": 1, "height": 1}),
        ("images", {"id": 1, "file_name": 7, "width": 1, "height": 1}),
        ("images", {"id": 1, "file_name": "a.jpg"}),
        ("annotations", 0.5),
        ("annotations", {"id": 1, "category_id": 1}),
        ("annotations", {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": "true"}),
    ],
)
def test_a_malformed_coco_entry_raises_kdep_error(tmp_path: Path, part: str, entry: Any):
    dataset = tiny_set(tmp_path, "coco")
    path = tmp_path / "coco/annotations/instances_train2017.json"
    table = json.loads(path.read_text())
    table[part][0] = entry
    path.write_text(json.dumps(table))
    with pytest.raises(KdepError, match=f"entry 0 of {part}"):
        verify(dataset, tmp_path, 1, check_counts=False)


@pytest.mark.parametrize("word", ["\u00b2", "x", "-1", "9" * 30])
@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt", "train_test_split.txt"])
@pytest.mark.parametrize("column", [0, 1])
def test_a_wrong_word_in_a_list_of_cub_raises_kdep_error(
    tmp_path: Path, name: str, word: str, column: int
):
    dataset = tiny_set(tmp_path, "cub200")
    path = tmp_path / "cub200/CUB_200_2011" / name
    rows = [r.split(" ") for r in path.read_text().splitlines()]
    rows[3][column] = word
    path.write_text("\n".join(" ".join(r) for r in rows))
    with pytest.raises(KdepError, match="CUB_200_2011"):
        verify(dataset, tmp_path, 1, check_counts=False)


@pytest.mark.parametrize("row", [0.5, [], {}, {"id": {}}, {"id": 3}, None])
def test_a_plan_with_a_malformed_row_raises_kdep_error(tmp_path: Path, row: Any):
    plan = build_plan(load_suite("smoke"))
    stage_id, second_id = list(plan.stages)[:2]
    path = tmp_path / "plan.json"
    write_plan(path, "smoke", [plan.stages[stage_id], plan.stages[second_id]])
    plan_rows = json.loads(path.read_text())
    broken_plans = (
        {**plan_rows, "stages": [plan_rows["stages"][0], row]},
        {**plan_rows, "stages": row},
        {k: v for k, v in plan_rows.items() if k != "stages"},
        {k: v for k, v in plan_rows.items() if k != "git"},
        {**plan_rows, "stages": [plan_rows["stages"][0]] * 2},
    )
    for content in broken_plans:
        path.write_text(json.dumps(content))
        with pytest.raises(KdepError, match=r"plan\.json is damaged: its stages"):
            read_stage(path, stage_id)
    path.write_text(json.dumps(plan_rows))
    assert read_stage(path, stage_id)[0].id == stage_id


def test_a_dtd_table_with_malformed_columns_raises_kdep_error(tmp_path: Path):
    from scipy.io import loadmat, savemat

    dataset = tiny_set(tmp_path, "dtd")
    path = tmp_path / "dtd/dtd/imdb/imdb.mat"
    images = loadmat(path, simplify_cells=True)["images"]
    columns = {k: np.asarray(v) for k, v in images.items()}
    for change in (
        {"name": 3},
        {"set": columns["set"][:-1]},
        {"class": columns["class"] + 0.5},
        {"name": np.arange(len(columns["name"]))},
    ):
        savemat(path, {"images": columns | change})
        with pytest.raises(KdepError, match=r"imdb\.mat"):
            verify(dataset, tmp_path, 1, check_counts=False)


def test_control_characters_in_an_error_are_escaped():
    text = str(KdepError("the file a\x1b[31m\x07b\x9b\r.jpg\nis\tbad \udcff \ud800"))
    assert text == "the file a\\x1b[31m\\x07b\\x9b\\x0d.jpg\nis\tbad \\xff \\ud800."


def test_the_error_for_an_unknown_name_can_suggest_a_number():
    assert "did you mean 124?" in str(unknown_name("stage", "123", [124, "x"]))  # type: ignore[list-item]

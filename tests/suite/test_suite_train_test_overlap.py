"""If a teacher was trained on a task's test data, the record has a note; no stage runs again."""

from __future__ import annotations

from pathlib import Path

import engine_fakes as fakes
import pytest
from test_engine_collect import load_record, make_suite
from test_suite_config import build

from kdep_bench.engine.collect import collect
from kdep_bench.errors import KdepError
from kdep_bench.results.report.data_notes import NOTE
from kdep_bench.suite import train_test_overlap
from kdep_bench.suite.config import resolve
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.train_test_overlap import overlap_notes, trained_on

TEACHER = {"name": "big", "card": {"trained_on": ["ImageNet-22k", "MS-COCO"]}}


@pytest.mark.parametrize(
    ("task", "data", "names"),
    [
        ({"recipe": {"set": "coco"}}, "imagenet", ["coco"]),
        ({"recipe": {"folder": "detect"}}, "COCO 2017", ["COCO 2017"]),
        ({"recipe": {"folder": "detect"}, "tests_on": ["ImageNet-1k"]}, "mine", ["ImageNet-1k"]),
        ({"recipe": {"set": "cub200"}}, "imagenet", []),
        ({"recipe": {"folder": "classify"}}, "mine", []),
    ],
)
def test_overlaps_are_found_by_name_in_any_spelling(task, data, names) -> None:
    notes = overlap_notes([TEACHER, None], {"name": "t", **task}, data)
    assert [n.rpartition("evaluated on ")[2] for n in notes] == names
    assert all(n.startswith("big was trained on ") for n in notes)


def test_a_teacher_trained_on_coco_is_noted_only_on_coco() -> None:
    teacher = resolve("teacher", "microsoft_resnet50")
    for name, marked in {"coco_fpn": True, "voc0712_fpn": False, "dtd": False}.items():
        task = resolve("task", name)
        assert bool(overlap_notes([teacher], task, "imagenet")) is marked


@pytest.mark.parametrize("value", ["imagenet", [1], ["--"], {"a": 1}])
def test_a_wrong_list_of_data_sets_is_refused(value: object) -> None:
    with pytest.raises(KdepError, match=r"card.trained_on of 'x'.*a list of data set names"):
        trained_on({"name": "x", "card": {"trained_on": value}})
    with pytest.raises(KdepError, match="tests_on of the task 'x'"):
        train_test_overlap.tests_on({"name": "x", "tests_on": value}, "mine")


@pytest.mark.parametrize("card", [None, ["imagenet"], "imagenet"])
def test_a_card_that_is_no_dictionary_is_refused(card: object) -> None:
    with pytest.raises(KdepError, match=r"has card = .*; expected a dictionary"):
        resolve("teacher", dict(base="efficientnet_lite0", card=card))


def test_a_record_has_the_note_and_no_stage_runs_again(tmp_path: Path) -> None:
    suite, plan, work, results = make_suite(tmp_path, methods=["kdep", "scratch"])
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    stated = suite.data["scores_note"]
    former_notes = [load_record(results, m).notes for m in ("kdep", "scratch")]
    assert former_notes == [[NOTE + stated]] * 2

    name = suite.data["name"]
    for teacher in suite.teachers.values():
        assert teacher is not None
        teacher["card"] = {**teacher.get("card", {}), "trained_on": [name]}
    changed_plan = build_plan(suite, fakes.PRETEND)
    assert changed_plan.stages.keys() == plan.stages.keys()
    former_hash = load_record(results, "kdep").config_hash
    collect(suite, changed_plan, work, results)
    (note,) = [
        n for n in load_record(results, "kdep").notes if n.startswith(NOTE) and stated not in n
    ]
    assert f"was trained on {name}, and this task is evaluated on {name}" in note
    assert load_record(results, "scratch").notes == [NOTE + stated]
    assert load_record(results, "kdep").config_hash == former_hash


def test_a_suite_can_set_trained_on_and_tests_on() -> None:
    task = resolve("task", {"base": "pocket_det", "name": "mine_det", "tests_on": ["coco"]})
    assert train_test_overlap.tests_on(task, "mine") == ["coco"]
    base = {"base": "efficientnet_lite0", "card": {"trained_on": ["mine"]}}
    assert trained_on(resolve("teacher", base)) == ["mine"]
    with pytest.raises(KdepError, match="unknown key"):
        resolve("task", {"base": "pocket_det", "tested_on": ["coco"]})
    with pytest.raises(KdepError, match=r"card\.trained_on"):
        build_plan(build(teacher={"base": "efficientnet_lite0", "card": {"trained_on": "mine"}}))


def test_an_intermediate_teacher_inherits_the_training_data_of_its_teacher() -> None:
    from kdep_bench.suite.methods import assistant_config
    from kdep_bench.suite.teachers import teacher_config_for

    base = {"name": "big", "card": {"trained_on": ["coco"]}}
    student, method = {"name": "small", "width": 8}, {"name": "kdep", "objective": {"type": "x"}}
    with_intermediate = {
        "name": "chain",
        "objective": {"type": "y"},
        "needs": ["features"],
        "teacher": {
            "student": student,
            "method": {**method, "needs": ["features"]},
            "epochs": None,
        },
    }
    teacher = teacher_config_for(with_intermediate, base)
    assert overlap_notes([teacher], {"name": "t", "recipe": {"set": "coco"}}, "mine")
    assert (
        "trained_on" not in (assistant_config(with_intermediate) or {})["card"]
    )  # not in the spec of a stage

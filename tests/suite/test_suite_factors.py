"""Factors of an ablation: the grid of a suite, and cards that are refused when it is planned."""

from __future__ import annotations

from typing import Any

import pytest
from test_suite_config import SUITE, build

from kdep_bench.engine.collect import _method_fields, _transfer_fields
from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite, resolve
from kdep_bench.suite.factors import grid_of
from kdep_bench.suite.methods import assistant_config
from kdep_bench.suite.plan import build_plan
from kdep_bench.transfer.model_card import card


def method(name: str, base: str = "kdep", **factors: Any) -> dict[str, Any]:
    """A method config with these factors in its card."""
    return dict(base=base, name=name, card=dict(factors=factors))


def test_the_ablation_is_a_product_of_its_factors_with_equal_budgets():
    suite = load_suite("ablation_pocket")
    plan = build_plan(suite)
    grid = grid_of([r.method for r in plan.runs], [r.student for r in plan.runs])
    assert grid is not None
    levels = dict(grid["levels"])
    assert levels["knowledge"] == ["logits", "hidden", "attention", "relation", "pairs"]
    assert levels["matching"] == ["last", "uniform", "clustered"]
    assert len(grid["methods"]) == 2 + 3 * 3
    assert len(grid["students"]) == len(levels["initialisation"]) * len(levels["shape"]) == 4
    budgets = {str(s.spec.get("budget")) for s in plan.stages.values() if s.kind == "pretrain"}
    assert len(budgets - {"None"}) == 1
    # 11 methods on 4 students, and scratch on the 2 with random initial weights; 3 tasks, 3 seeds.
    assert len(plan.runs) == (11 * 4 + 2) * 3 * 3


def test_factors_are_in_no_stage_id():
    with_factors = build(methods=["scratch", method("kdep", matching="last")])
    without = build(methods=["scratch", dict(base="kdep", name="kdep")])
    assert set(build_plan(with_factors).stages) == set(build_plan(without).stages)
    assert grid_of(without.methods, without.students) is None


@pytest.mark.parametrize("factors", [["last"], dict(matching=3), {}])
def test_factors_that_are_not_a_dict_of_texts_are_refused(factors):
    suite = build(methods=[dict(base="kdep", name="kdep", card=dict(factors=factors))])
    with pytest.raises(KdepError, match=r"expected dict\(<factor>='<level>'"):
        build_plan(suite)


def test_two_methods_of_one_combination_are_refused():
    suite = build(methods=[method("kdep", matching="last"), method("svd2", "svd", matching="last")])
    with pytest.raises(KdepError, match=r"'kdep' and 'svd2' have the same `card\.factors`"):
        build_plan(suite)


# ---- students with trained initial weights ----


def copied(**card: Any) -> dict[str, Any]:
    """A student whose weights are copied from the supervised network."""
    students = load_suite("ablation_pocket").students
    (student,) = (s for s in students if s["name"] == "lite0_shallow_copied")
    return {**student, "card": card}


def with_backbone(**changes: Any) -> dict[str, Any]:
    """The student resnet18_w32 with other arguments of its backbone."""
    student = resolve("student", "resnet18_w32")
    return {**student, "backbone": {**student["backbone"], **changes}}


LABELLED = copied(labels_used=True)
VIEWS = {**SUITE["budget"], "views": 2}


@pytest.mark.parametrize("card", [{}, dict(labels_used=False), dict(factors=dict(shape="deep"))])
def test_a_student_with_copied_weights_must_state_that_labels_were_used(card):
    wrong = copied(**card)
    expected = (
        r"student 'lite0_shallow_copied' .*`copied`.*labels_used = .*ImageNet's labels.*"
        r"set card=dict\(labels_used=True\) in the student 'lite0_shallow_copied'"
    )
    for change in (
        dict(students=[wrong]),
        dict(methods=[dict(base="kdep_assistant", teacher=dict(student=wrong))]),
    ):
        with pytest.raises(KdepError, match=expected):
            build(**change)


@pytest.mark.parametrize(
    "argument",
    [
        dict(init_cfg=dict(type="Pretrained", checkpoint="w.pth")),
        dict(init_cfg=[dict(type="Kaiming"), dict(type="Pretrained", checkpoint="w.pth")]),
        dict(checkpoint_path="w.pth"),
        dict(pretrained=True),
    ],
)
def test_a_student_with_other_trained_weights_must_state_whether_labels_were_used(argument):
    student = with_backbone(**argument)
    with pytest.raises(KdepError, match=f"trained initial weights .*{next(iter(argument))}"):
        build(students=[student])
    for used in (True, False):
        assert build(students=[{**student, "card": dict(labels_used=used)}])


def test_random_initial_weights_need_no_statement():
    assert build(students=[with_backbone(init_cfg=dict(type="Kaiming", layer="Conv2d"))])


def test_the_record_of_a_student_with_copied_weights_says_that_labels_were_used():
    suite = build(students=["resnet18_w32", LABELLED], methods=["kdep"])
    fields = [_method_fields(suite.methods[0], student) for student in suite.students]
    assert [f["labels_used"] for f in fields] == [False, True]
    assert [f["label_policy"] for f in fields] == ["label-free", "labels"]
    exports = [s for s in build_plan(suite).stages.values() if s.kind == "export"]
    shown = {}
    for stage in exports:
        pretrain = {"pretrain": {"labels_used": False}}  # of the method, in the stage's outputs
        student = stage.spec["student"]
        text = card(stage.about, student, pretrain, {"parameters": 1}, {"backbone.pth": ""}, "")
        row = next(line for line in text.splitlines() if line.startswith("| labels used"))
        shown[stage.about["student"]] = row.split(" | ")[1].strip(" |")
    assert shown == {"resnet18_w32": "no", "lite0_shallow_copied": "yes"}


def test_teachers_with_copied_weights_count_as_trained_with_labels():
    """A label-free method cannot have such an intermediate teacher, unless it declares it."""
    method = dict(base="kdep_assistant", teacher=dict(student=LABELLED))
    with pytest.raises(KdepError, match=r"label-free policy.* on student 'lite0_shallow_copied'"):
        build_plan(build(methods=[method]))
    allowed = build_plan(build(methods=[{**method, "label_policy": "labels"}]))
    teacher = assistant_config(allowed.runs[0].method)
    assert teacher is not None
    assert teacher["card"]["labels_used"] is True
    suite = build(students=[LABELLED], methods=[dict(base="kdep_self_distillation")])
    for run in build_plan(suite).runs:  # its rows say that labels were used as well
        assert _method_fields(run.method, run.student)["label_policy"] == "labels"


def test_a_tuned_teacher_with_copied_weights_counts_as_trained_with_labels():
    suite = build(students=["resnet18_w32", LABELLED], methods=["ghost"], tasks=["smoke_finetune"])
    by_student = {r.student["name"]: _transfer_fields(r, {}) for r in build_plan(suite).runs}
    used = {name: fields and fields["teacher_labels_used"] for name, fields in by_student.items()}
    assert used == {"resnet18_w32": False, "lite0_shallow_copied": True}


@pytest.mark.parametrize("name", ["dml", "bd_kd", "mfef", "hssakd_online"])
def test_peers_with_the_same_copied_weights_as_the_student_are_refused(name):
    objective = resolve("method", name)["objective"] | (dict(peer=None) if name == "bd_kd" else {})
    parts = dict(a=dict(objective=objective))
    weighted = dict(type="kdep_bench.objectives.weighted_sum.WeightedSum", parts=parts)
    for changed in (objective, weighted):
        method = dict(base=name, objective=dict(_delete_=True, **changed))
        with pytest.raises(KdepError, match=r"same architecture, .*the same weights \(`copied`"):
            build_plan(build(students=[LABELLED], methods=[method]))
        build_plan(build(methods=[method]))  # with random weights


def test_a_student_with_copied_weights_may_have_other_peers_or_none():
    alone = dict(base="mfef", objective=dict(peers=0))
    build_plan(build(students=[LABELLED], methods=[alone, "bd_kd", "mean_teacher"], budget=VIEWS))

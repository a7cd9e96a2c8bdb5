"""Self-distillation: a teacher of the student's own architecture, over generations."""

from __future__ import annotations

from typing import Any

import pytest
from test_suite_methods import plan, training_specs

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.image_counts import check_counts
from kdep_bench.suite.methods import SAME_STUDENT, for_student, methods_for
from kdep_bench.suite.plan import build_plan

STUDENTS = ["resnet18_w32", "resnet18_w48"]


def stages(a_plan: Plan, kind: str) -> list[Any]:
    """The plan's stages of a kind."""
    return [s for s in a_plan.stages.values() if s.kind == kind]


def test_the_first_network_is_trained_once_and_is_the_row_of_its_own_method():
    a_plan = plan("supervised", "self_distillation")
    assert len(stages(a_plan, "pretrain")) == 2
    rows = {r.method["name"]: r for r in a_plan.runs}
    self_distilled = rows["self_distillation"]
    assert self_distilled.chain["teacher.pretrain"] == rows["supervised"].chain["pretrain"]
    assert self_distilled.teacher is not None
    assert self_distilled.teacher["name"] == "resnet18_w32.supervised"
    (cache,) = stages(a_plan, "cache")
    assert cache.spec["outputs"] == ["logits"]


def test_every_student_has_a_teacher_of_its_own_architecture():
    """Two students and four methods: a wrong pair would be a normal distillation."""
    methods = ["kdep", "self_distillation_2", "supervised", "kdep_self_distillation"]
    a_plan = plan(*methods, students=STUDENTS)
    for run in a_plan.runs:
        chain = [run.chain[k] for k in run.chain if k.rpartition(".")[2] == "pretrain"]
        specs = [a_plan.stages[i].spec for i in chain]
        assert {s["student"]["name"] for s in specs} == {run.student["name"]}
        n_networks = {"self_distillation_2": 3, "kdep_self_distillation": 2}
        assert len(specs) == n_networks.get(run.method["name"], 1)
    for stage in stages(a_plan, "pretrain"):
        student, method = stage.spec["student"]["name"], stage.spec["method"]["name"]
        assert stage.name.startswith(f"{student}.{method}.")
    # supervised, its two generations, kdep and its second generation
    assert len(stages(a_plan, "pretrain")) == 2 * 5


def test_generations_are_planned_and_trained_in_order():
    a_plan = plan("self_distillation_2", "self_distillation")
    rows = {r.method["name"]: r.chain for r in a_plan.runs}
    second = rows["self_distillation_2"]
    assert second["teacher.pretrain"] == rows["self_distillation"]["pretrain"]
    first_spec = a_plan.stages[second["teacher.teacher.pretrain"]].spec
    assert first_spec["method"]["name"] == "supervised"
    order = list(a_plan.stages)
    chain = [second[f"{k}pretrain"] for k in ("teacher.teacher.", "teacher.", "")]
    assert [order.index(i) for i in chain] == sorted(order.index(i) for i in chain)
    third = dict(
        base="self_distillation",
        name="self_distillation_3",
        teacher=dict(method="self_distillation_2"),
    )
    assert len(stages(plan(third), "pretrain")) == 4


def test_the_second_kdep_network_regresses_the_first_without_svd_and_without_labels():
    a_plan = plan("kdep_self_distillation")
    (spec,) = training_specs(a_plan, "pretrain", "kdep_self_distillation")
    assert spec["method"]["labels_used"] is False
    alignments = sorted(s.spec["align"]["type"].rpartition(".")[2] for s in stages(a_plan, "align"))
    assert alignments == ["Identity", "svd"]
    (run,) = a_plan.runs
    assert run.teacher is not None
    assert run.teacher["card"]["labels_used"] is False
    assert a_plan.stages[run.chain["teacher.cache"]].spec["teacher"]["name"] == "efficientnet_lite0"


def test_a_student_that_a_rehearsal_shrinks_has_a_teacher_of_the_same_size():
    suite = build_suite(
        dict(
            name="own",
            data="smoke",
            students=["resnet18_w32"],
            methods=["self_distillation_2"],
            budget=load_suite("smoke").budget.model_dump(),
            seeds=dict(pretrain=[0], transfer=[0]),
        )
    )
    (student,) = suite.students
    assert suite.methods[0]["teacher"]["student"] == SAME_STUDENT
    small = {**student, "input_px": 32}
    (method,) = methods_for(suite, small)
    assert method["teacher"]["student"] is small
    assert method["teacher"]["method"]["teacher"]["student"] is small
    assert suite.methods[0]["teacher"]["student"] == SAME_STUDENT  # not changed in place
    assert len(stages(build_plan(suite), "pretrain")) == 3  # supervised and two generations
    check_counts(suite)


def test_same_inside_an_assistant_is_the_assistant_s_architecture():
    """The teacher of a wide assistant is then wide; teachers by role are resolved as well."""
    wide = dict(student="resnet18_w48", method="self_distillation")
    a_plan = plan(dict(base="self_distillation", name="wide_first", teacher=wide))
    students = {s.spec["student"]["name"] for s in stages(a_plan, "pretrain")}
    by_method = {s.spec["method"]["name"]: s.spec for s in stages(a_plan, "pretrain")}
    assert students == set(STUDENTS)
    assert by_method["supervised"]["student"]["name"] == "resnet18_w48"
    student = {"name": "a"}
    # SAME_STUDENT is replaced by the student, also in teachers by role.
    inner = {
        "name": "m",
        "teacher": {"student": SAME_STUDENT, "method": {"name": "t"}, "epochs": None},
    }
    roles = {"teachers": {"own": inner["teacher"], "other": "suite"}}
    assert for_student(roles, student)["teachers"]["own"]["student"] is student
    # Inside a tuned teacher, SAME_STUDENT is the student of that teacher.
    tuned = {"transfer": {"type": "x", "teacher": {"student": {"name": "b"}, "method": inner}}}
    resolved = for_student(tuned, student)["transfer"]["teacher"]["method"]
    assert resolved["teacher"]["student"] == {"name": "b"}
    # Without SAME_STUDENT there is nothing to replace.
    plain = {"name": "m", "teacher": {"student": {"name": "b"}, "method": {"name": "t"}}}
    assert for_student(plain, student) is plain


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(base="self_distillation", teacher=dict(method="scratch")), "not trained"),
        (dict(base="self_distillation", teacher=dict(method="kdep")), "has none"),
        (dict(base="kdep_self_distillation", teacher=dict(method="supervised")), "with labels"),
        (dict(base="self_distillation", teacher=dict(method="takd")), "1000 classes and the pool"),
        (dict(base="self_distillation", objective=dict(alpha=1.2)), "alpha = 1.2"),
        (dict(base="self_distillation", teacher=dict(student="sane")), "unknown student config"),
    ],
)
def test_a_first_network_that_cannot_teach_is_refused(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(name="changed", **method))


def test_a_generation_that_is_its_own_teacher_is_refused():
    with pytest.raises(KdepError, match="form a loop: self_distillation <- self_distillation"):
        plan(dict(base="self_distillation", teacher=dict(method="self_distillation")))


def test_data_without_labels_are_refused():
    data = dict(base="mine", name="unlabelled", pool="/no/such/folder")
    with pytest.raises(KdepError, match=r"'supervised' .* needs labels, but the data 'unlabelled'"):
        plan("self_distillation", data=data, tasks=[])

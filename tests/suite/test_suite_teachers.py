"""Methods with several teachers: which stages are shared, what records contain, what is refused.

The role of a teacher is the name by which the method's objective reads it.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_suite_config import build

from kdep_bench.engine.collect import _config_hash
from kdep_bench.errors import KdepError
from kdep_bench.forecast.gpu_hours import teacher_name
from kdep_bench.forecast.work import live_teachers, networks
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.methods import head_classes, role_teachers, with_role_teachers
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.teachers import teacher_config_for

OBJECTIVES = "kdep_bench.objectives"
SUPERVISED = dict(student="resnet18_w48", method="supervised", epochs=None)
AEKD = dict(_delete_=True, type=f"{OBJECTIVES}.aekd.AgreementKD")
SGD = dict(type="SGD", lr=0.1)


def plan(*methods: Any, **changes: Any) -> Plan:
    """The plan of the test suite with these methods."""
    return build_plan(build(methods=list(methods), claims=[], **changes))


def with_teachers(method: str, **teachers: Any) -> dict[str, Any]:
    """The method under the name "own", with these teachers by role."""
    return dict(base=method, name="own", teachers=dict(_delete_=True, **teachers))


def pretrain_stage(made_plan: Plan, method: str) -> Stage:
    """The pre-training stage of a method."""
    (stage,) = [
        s
        for s in made_plan.stages.values()
        if s.kind == "pretrain" and s.spec["method"]["name"] == method
    ]
    return stage


def caches(made_plan: Plan) -> set[str]:
    """Ids of the plan's caches."""
    return {i for i, s in made_plan.stages.items() if s.kind == "cache"}


def test_a_teacher_s_cache_is_shared_by_methods_of_one_and_of_several_teachers():
    kdep_plan, plan_of_three = plan("kdep"), plan("kdep", "ebkd", "aekd")
    assert set(kdep_plan.stages) <= set(plan_of_three.stages)  # no finished stage runs again
    assert len(caches(plan_of_three)) == 2
    assert caches(plan("ebkd", seeds={"pretrain": [3], "transfer": [3]})) == caches(plan_of_three)
    stage = pretrain_stage(plan_of_three, "ebkd")
    assert stage.spec["roles"] == ["first", "second"]
    assert {k for k in stage.needs if k.endswith("cache")} == {"first.cache", "second.cache"}


def test_the_order_of_the_roles_changes_a_run_s_id():
    """An objective for one teacher reads the first role."""
    suite_first = with_teachers("multi_teacher_kd", a="suite", b="efficientnet_lite2")
    suite_second = with_teachers("multi_teacher_kd", b="efficientnet_lite2", a="suite")
    assert (
        pretrain_stage(plan(suite_first), "own").id != pretrain_stage(plan(suite_second), "own").id
    )


def test_a_record_names_every_teacher_and_its_hash_depends_on_all():
    (run,) = [r for r in plan("ebkd").runs if r.method["name"] == "ebkd"][:1]
    assert run.teacher is not None
    assert run.teacher["name"] == "efficientnet_lite0+efficientnet_lite2"
    assert [t["variant"] for t in run.teacher["teachers"]] == [0, 2]
    assert set(run.chain) >= {"first.cache", "second.cache"}
    small = dict(base="efficientnet_lite2", input_px=96)
    other = plan(dict(base="ebkd", teachers=dict(second=small)))
    assert _config_hash(run) != _config_hash(other.runs[0])
    stated = dict(base="efficientnet_lite2", card=dict(top1=0.5))
    other_card = plan(dict(base="ebkd", teachers=dict(second=stated)))
    assert other_card.runs[0].id == run.id


def test_the_card_of_several_teachers_states_every_licence():
    run = plan("ebkd").runs[0]
    assert run.teacher is not None
    assert run.teacher["card"]["licence"] == (
        "efficientnet_lite0: Apache-2.0; efficientnet_lite2: Apache-2.0"
    )
    method = {**run.method, "teachers": {"a": "suite", "b": {"type": "x", "name": "b"}}}
    joint = teacher_config_for(method, {"name": "a", "card": {"licence": "MIT"}})
    assert joint is not None
    assert joint["card"]["licence"] == "a: MIT; b: not stated"


def test_a_part_of_a_weighted_sum_of_objectives_reads_the_teacher_that_the_part_names():
    """The second teacher's cache contains its maps, the first teacher's cache only its feature."""
    objective: dict[str, Any] = dict(
        _delete_=True,
        type=f"{OBJECTIVES}.weighted_sum.WeightedSum",
        parts=dict(
            logits=dict(objective=dict(type=f"{OBJECTIVES}.logit_kd.LogitKD")),
            maps=dict(
                objective=dict(type=f"{OBJECTIVES}.hints.Hints", levels=dict(s32="s32")),
                teacher="large",
            ),
        ),
    )
    method = with_teachers("logit_kd", small="suite", large="efficientnet_lite2") | dict(
        objective=objective, needs=["logits", "maps"]
    )
    small_plan = plan("kdep", method)
    stage = pretrain_stage(small_plan, "own")
    assert small_plan.stages[stage.needs["small.cache"]].spec.get("outputs") is None
    assert small_plan.stages[stage.needs["large.cache"]].spec["outputs"] == ["maps.s32"]
    assert caches(plan("kdep")) <= caches(small_plan)
    objective["parts"]["maps"]["teacher"] = "larg"
    with pytest.raises(KdepError, match=r"unknown teacher role 'larg' in a part.*mean large"):
        plan(method)
    objective["parts"]["maps"]["teacher"] = "small"
    with pytest.raises(KdepError, match=r"has 2 teachers \(small, large\), but its"):
        plan(method)
    without_teachers = dict(base="logit_kd", objective=objective, needs=["logits", "maps"])
    with pytest.raises(KdepError, match="add `teachers` to the method"):
        plan(without_teachers)


def test_an_alignment_is_fitted_only_for_teachers_whose_feature_is_regressed():
    objective: dict[str, Any] = dict(
        _delete_=True,
        type=f"{OBJECTIVES}.weighted_sum.WeightedSum",
        parts=dict(
            feature=dict(objective=dict(type=f"{OBJECTIVES}.feature_regression.FeatureRegression")),
            logits=dict(objective=dict(type=f"{OBJECTIVES}.logit_kd.LogitKD"), teacher="b"),
        ),
    )
    method = with_teachers("kdep", a="suite", b="efficientnet_lite2") | dict(
        objective=objective, needs=["pooled", "logits"]
    )
    small_plan = plan("kdep", method)
    stage = pretrain_stage(small_plan, "own")
    assert {k for k in stage.needs if "." in k} == {"a.cache", "b.cache", "a.align"}
    assert stage.needs["a.align"] == pretrain_stage(small_plan, "kdep").needs["align"]


def test_intermediate_teachers_can_have_a_role():
    weak = dict(student="resnet18_w32", method="supervised", epochs=None)
    method = with_teachers("ebkd", a=SUPERVISED, b=weak) | dict(label_policy="labels")
    small_plan = plan(method)
    run = small_plan.runs[0]
    own_stages = {"prepare", "views", "pretrain", "export", "transfer", "a.cache", "b.cache"}
    teacher_stages = {f"{role}.teacher.{kind}" for role in "ab" for kind in ("pretrain", "export")}
    assert set(run.chain) == own_stages | teacher_stages
    assert small_plan.stages[run.chain["a.cache"]].needs["export"] == run.chain["a.teacher.export"]
    assert run.teacher is not None
    assert run.teacher["name"] == "resnet18_w48.supervised+resnet18_w32.supervised"
    with pytest.raises(KdepError, match="label-free policy, but its teacher 'supervised'"):
        plan(with_teachers("ebkd", a=SUPERVISED, b=weak))


def test_live_teachers_by_role_are_in_the_spec_and_in_the_costs():
    small_plan = plan("ebkd", budget=dict(epochs=1, batch=8, optimizer=SGD, teacher="live"))
    stage = pretrain_stage(small_plan, "ebkd")
    assert [t["variant"] for t in live_teachers(stage.spec)] == [0, 2]
    assert "images" in stage.needs
    assert not caches(small_plan)
    assert {n["name"] for n in networks(small_plan)} >= {"efficientnet_lite0", "efficientnet_lite2"}


def test_the_gpu_hours_of_a_method_belong_to_the_suite_s_teacher_if_the_method_uses_it():
    """Otherwise a budget could select the method without the methods it is compared with."""
    small_plan = plan(
        "kdep", "ebkd", with_teachers("ebkd", a="efficientnet_lite2", b="mobilenetv2")
    )
    names = {r.method["name"]: teacher_name(small_plan, r) for r in small_plan.runs}
    assert names == {
        "kdep": "efficientnet_lite0",
        "ebkd": "efficientnet_lite0",
        "own": "efficientnet_lite2+mobilenetv2",
    }


def test_an_intermediate_teacher_inherits_data_and_classes_of_all_its_teachers():
    """Otherwise a note about a test set that a teacher was trained on would be missing."""
    coco = dict(base="efficientnet_lite2", card=dict(trained_on=["coco"]))
    raw = build(methods=[dict(base="ebkd", teachers=dict(second=coco))], claims=[])
    ebkd, student = raw.methods[0], raw.students[0]
    method = {
        **build(methods=["logit_kd"], claims=[]).methods[0],
        "teacher": {"student": student, "method": ebkd, "epochs": None},
    }
    teacher = teacher_config_for(method, raw.teachers["resnet18_w32"])
    assert teacher is not None
    assert teacher["card"]["trained_on"] == ["imagenet", "coco"]
    assert head_classes(raw, method, raw.teachers["resnet18_w32"]) == 1000
    built_plan = build_plan(raw.model_copy(update={"methods": [method]}))
    assert {k for k in built_plan.runs[0].chain if k.endswith("cache")} == {
        "cache",
        "teacher.first.cache",
        "teacher.second.cache",
    }
    assert teacher_name(built_plan, built_plan.runs[0]) == "efficientnet_lite0"
    # A teacher whose own first teacher was trained on the pool's labels has the pool's classes.
    supervised = dict(
        student=student, method=build(methods=["supervised"], claims=[]).methods[0], epochs=None
    )
    with_roles = {"teachers": {"a": supervised, "b": "suite"}, "needs": ["logits"]}
    with_upstream = {"teacher": {"student": student, "method": with_roles, "epochs": None}}
    assert (
        head_classes(raw, with_upstream, raw.teachers["resnet18_w32"]) == raw.data["pool_classes"]
    )


def test_with_role_teachers_keeps_the_order_and_other_entries():
    method = {"name": "m", "teachers": {"b": "suite", "a": {"type": "T", "name": "x"}}}
    changed = with_role_teachers(method, lambda t: {**t, "content": 1})
    assert list(changed["teachers"].items()) == [
        ("b", "suite"),
        ("a", {"type": "T", "name": "x", "content": 1}),
    ]
    assert with_role_teachers({"name": "m"}, dict) == {"name": "m"}


def test_teachers_by_role_of_intermediate_teachers_get_content_hashes():
    """Otherwise a changed checkpoint would keep the former scores."""
    innermost = {"name": "own", "teachers": {"x": {"type": "T", "name": "x"}, "y": "suite"}}
    inner = {
        "name": "inner",
        "teacher": {"student": {"name": "s"}, "method": innermost, "epochs": 1},
    }
    outer = {"teachers": {"p": {"student": {}, "method": inner}, "q": {"type": "T", "name": "q"}}}
    filled = with_role_teachers(outer, lambda t: {**t, "content": 1})
    assert [t["name"] for t in role_teachers(filled)] == ["x", "q"]
    assert all(t["content"] == 1 for t in role_teachers(filled))
    unchanged = with_role_teachers(outer, lambda t: t)
    assert unchanged == outer


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (with_teachers("kdep", a="suite", b="efficientnet_lite2"), "its objective reads one"),
        (
            with_teachers("supervised", a="suite", b="efficientnet_lite2"),
            "its objective reads no teacher",
        ),
        (with_teachers("ebkd", a="suite"), "has one teacher in `teachers`; expected two or more"),
        (with_teachers("ebkd", a="suite", b="efficientnet_lite0"), "are the same network"),
        (with_teachers("ebkd", a="suite", b="efficientnet_lite9"), "unknown teacher config"),
        (
            with_teachers("ebkd", a="suite", b="dinov2_vitb14"),
            r"teacher 'b'. needs logits, but .*has none",
        ),
        (with_teachers("ebkd", a="suite", **{"b.c": "efficientnet_lite2"}), "is not a plain name"),
        (
            with_teachers("ebkd", a="suite", b=SUPERVISED),
            r"different numbers of classes \(a 1000, b 9\)",
        ),
        (dict(base="ebkd", teacher=SUPERVISED), "has both `teacher` and `teachers`"),
        ("ca_mkd", "compares .* has 1000 classes and the pool of 'smoke' 9.*`ebkd`"),
        (
            dict(base="logit_kd", objective=AEKD),
            "has no teacher in `teachers`; expected two or more",
        ),
    ],
)
def test_teachers_that_the_objective_cannot_use_are_refused_when_planned(method: Any, message: str):
    with pytest.raises(KdepError, match=message):
        plan(method)


def test_a_teacher_that_no_part_of_the_objective_reads_is_refused():
    objective: dict[str, Any] = dict(
        _delete_=True,
        type=f"{OBJECTIVES}.weighted_sum.WeightedSum",
        parts={
            k: dict(objective=dict(type=f"{OBJECTIVES}.logit_kd.LogitKD"), teacher=k) for k in "ab"
        },
    )
    teachers = dict(a="suite", b="efficientnet_lite2", c="mobilenetv2")
    method = with_teachers("logit_kd", **teachers) | dict(objective=objective)
    with pytest.raises(KdepError, match=r"no part of the objective of method 'own' reads .* 'c'"):
        plan(method)
    del teachers["c"]
    plan(with_teachers("logit_kd", **teachers) | dict(objective=objective))


def test_a_classifier_that_does_not_read_the_pooled_feature_is_refused():
    objective = dict(_delete_=True, type=f"{OBJECTIVES}.ca_mkd.ConfidenceAwareFeatures")
    method = with_teachers("ca_mkd", a=SUPERVISED, b=dict(SUPERVISED, student="resnet18_w32"))
    method |= dict(objective=objective)
    with pytest.raises(KdepError, match="which the suite trains, reads the feature after it"):
        plan(method)
    method["teachers"] = dict(_delete_=True, a="microsoft_resnet50", b="resnet50")
    with pytest.raises(KdepError, match="does not state that its logits are computed from it"):
        plan(method)


def test_a_part_with_one_teacher_cannot_have_an_objective_for_several_teachers():
    objective = dict(
        _delete_=True,
        type=f"{OBJECTIVES}.weighted_sum.WeightedSum",
        parts=dict(
            a=dict(objective=dict(type=f"{OBJECTIVES}.multi_teacher.MultiTeacherKD"), teacher="a"),
            b=dict(objective=dict(type=f"{OBJECTIVES}.logit_kd.LogitKD"), teacher="b"),
        ),
    )
    method = with_teachers("logit_kd", a="suite", b="efficientnet_lite2") | dict(
        objective=objective
    )
    with pytest.raises(
        KdepError,
        match="method 'own': a part of the objective has teacher='a', but its class MultiTeacherKD "
        "reads every",
    ):
        plan(method)


def test_a_bridge_requires_a_teacher_whose_last_layers_can_be_run_separately():
    # The bridge of SOKD is a copy of the teacher's last layers, trained together with the student.
    plan("sokd")
    with pytest.raises(KdepError, match="trains the teacher's layers after the map 's16', which"):
        plan("sokd", teacher="mobilenetv2")
    levels = dict(_delete_=True, s32="s32")
    with pytest.raises(KdepError, match="expected one of s4, s8, s16"):
        plan(dict(base="sokd", objective=dict(levels=levels)))


def test_a_method_that_weights_teachers_by_batch_is_refused_with_gradient_accumulation():
    budget = dict(epochs=1, batch=8, optimizer=SGD, accumulate=2)
    plan("ebkd", budget=budget)
    with pytest.raises(KdepError, match="compares the samples of a batch"):
        plan("aekd", budget=budget)


def test_a_probe_of_the_method_s_teacher_is_refused_if_the_method_has_several_teachers():
    plan("ebkd", probes=["cka"])
    with pytest.raises(KdepError, match=r"the method 'ebkd' has several \(first, second\)"):
        plan("ebkd", probes=[dict(base="cka", teacher="method")])

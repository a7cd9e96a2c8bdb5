"""Method configs: their sources, shared alignments, overrides, and what is refused."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.features.policies import POLICIES
from kdep_bench.paths import CONFIGS
from kdep_bench.paths import ROOT as REPO
from kdep_bench.results.records import record
from kdep_bench.results.records.store import records_dir
from kdep_bench.suite.config import build_suite, load_config, load_suite, names
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.methods import assistant_config
from kdep_bench.suite.plan import build_plan

SGD = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4)


def plan(*methods: str | dict[str, Any], width: int | None = None, **changes: Any) -> Plan:
    """The plan of a small suite with these methods; `width`: the teacher's feature width."""
    suite = load_suite("smoke")
    raw = dict(
        name="several",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=list(methods),
        tasks=["smoke_probe"],
        budget=suite.budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    built = build_suite(raw | changes)
    if width is not None:
        narrow = {"type": "builtins.dict", "name": "narrow", "width": width}
        built = built.model_copy(update={"teachers": {"resnet18_w32": narrow}})
    return build_plan(built)


@pytest.mark.parametrize("name", names("method"))
def test_a_method_config_has_a_docstring_and_a_source(name: str):
    docstring = ast.get_docstring(ast.parse((CONFIGS / "methods" / f"{name}.py").read_text())) or ""
    assert len(docstring.partition("\n")[0]) > 20
    method = load_config("method", name)
    assert method["name"] == name
    assert method["source"]
    assert method["family"]


def test_methods_that_differ_only_in_the_transform_share_one_alignment():
    stages = plan("kdep", "svd", "phis", "whiten", "stdmatch", "random_basis").stages
    kinds = [s.kind for s in stages.values()]
    assert kinds.count("align") == 2
    assert kinds.count("cache") == 1
    assert kinds.count("pretrain") == 6
    kdep_alignment = [i for i in plan("kdep").stages if i.startswith("align")]
    assert set(kdep_alignment) <= set(stages)


@pytest.mark.parametrize("name", ["kdep", "interpolate", "top_variance", "random_basis"])
def test_a_student_wider_than_its_teacher_is_refused_for_every_alignment(name: str):
    with pytest.raises(KdepError, match="256 channels and the teacher 'narrow' only 200"):
        plan(name, width=200)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_allows_a_student_wider_than_its_teacher_and_is_in_the_alignment_s_spec(
    policy: str,
):
    align = dict(_delete_=True, type="svd", policy=policy)
    wide = plan(dict(base="kdep", name="wide", align=align), width=200)
    (stage,) = [s for s in wide.stages.values() if s.kind == "align"]
    assert stage.spec["align"] == {"type": "svd", "policy": policy}
    align["policy"] = policy[:-1]
    with pytest.raises(KdepError, match=f"did you mean {policy}"):
        plan(dict(base="kdep", name="wide", align=align), width=200)


def test_identity_alignment_of_unequal_widths_is_refused_before_any_work():
    with pytest.raises(KdepError, match="equal widths"):
        plan("identity", width=512)
    plan("identity", width=256)


def training_specs(plan: Plan, kind: str, method: str) -> list[dict[str, Any]]:
    """Specs of the stages of a kind that train this method."""
    return [
        s.spec
        for s in plan.stages.values()
        if s.kind == kind and s.spec["method"]["name"] == method and "budget" in s.spec
    ]


def test_a_method_s_optimiser_changes_only_that_method():
    default, with_lr = plan("kdep", "svd"), plan(dict(base="kdep", optimizer=dict(lr=0.05)), "svd")
    new = [s for i, s in with_lr.stages.items() if i not in default.stages]
    assert {s.kind for s in new} == {"pretrain", "export", "transfer"}
    assert all("kdep" in s.name for s in new)
    (spec,) = training_specs(with_lr, "pretrain", "kdep")
    assert spec["budget"]["optimizer"] == {**SGD, "lr": 0.05}
    assert "optimizer" not in spec["method"]
    with pytest.raises(KdepError, match="did you mean momentum"):
        plan(dict(base="kdep", optimizer=dict(momentun=0.5)))


def test_the_grid_of_learning_rates_reads_no_test_split_and_shares_finished_stages():
    suite = load_suite("methods_pocket_grid")
    full, grid = build_plan(load_suite("methods_pocket")), build_plan(suite)
    assert {t["split"] for t in suite.tasks} == {"val"}
    learning_rates = {
        s.id: s.spec["budget"]["optimizer"]["lr"]
        for s in grid.stages.values()
        if s.kind == "pretrain" and "budget" in s.spec
    }
    finished = {s.id for s in full.stages.values() if s.kind == "pretrain" and "budget" in s.spec}
    with_default_rate = {i for i, lr in learning_rates.items() if lr == 0.2}
    n_other_rates = sum(
        m.get("optimizer") is not None for m in load_suite("methods_pocket").methods
    )
    assert len(with_default_rate - finished) == n_other_rates > 0
    methods = [m["name"] for m in suite.methods if "-lr" not in m["name"]]
    assert methods == [m["name"] for m in load_suite("methods_pocket").methods]
    for other_rate in (0.05, 0.8):
        assert (
            sum(lr == other_rate for lr in learning_rates.values()) == len(methods) - 1
        )  # scratch has no rate
    assert {s.id for s in grid.stages.values() if s.kind == "cache"} <= set(full.stages)


@pytest.mark.parametrize("name", ["methods_pocket", "kdep_anatomy"])
def test_every_method_has_the_learning_rate_chosen_by_the_grid(name: str):
    """The rate of the highest validation score; at equal scores the nearest to 0.2.

    No run of the grid is missing.
    """
    planned = {c.id for c in build_plan(load_suite(f"{name}_grid")).runs}
    assert planned == {p.stem for p in records_dir(REPO / f"results/{name}_grid").iterdir()}
    scores: dict[str, dict[float, float]] = {}
    for path in records_dir(REPO / "results" / f"{name}_grid").glob("*.json"):
        grid_record = record.load(path)
        assert grid_record.status != "missing"
        method, _, rate = grid_record.arm.method.partition("-lr")
        if grid_record.value is not None:
            scores.setdefault(method, {})[float(rate or 0.2)] = grid_record.value
    methods = load_suite(name).methods
    assert set(scores) == {m["name"] for m in methods}
    for method in methods:
        scores_by_rate = scores[method["name"]]
        best = max(
            scores_by_rate, key=lambda rate: (scores_by_rate[rate], -abs(math.log(rate / 0.2)))
        )
        assert (method.get("optimizer") or {"lr": 0.2}) == {"lr": best}, method["name"]


def test_every_best_rate_of_kdep_anatomy_is_inside_the_tried_rates():
    tried: dict[str, set[float]] = {}
    for method in load_suite("kdep_anatomy_grid").methods:
        name, _, rate = method["name"].partition("-lr")
        tried.setdefault(name, set()).add(float(rate or 0.2))
    for method in load_suite("kdep_anatomy").methods:
        if method["name"] != "scratch":
            rate = (method.get("optimizer") or {"lr": 0.2})["lr"]
            assert min(tried[method["name"]]) < rate < max(tried[method["name"]]), method["name"]


def test_at_equal_compute_every_method_costs_as_much_as_kdep():
    """Cost in forward passes of the student; the wider intermediate teacher costs 2.25 times."""
    # The intermediate teacher is 1.5 times as wide; FLOPs grow with the square of the width.
    plan, wider = build_plan(load_suite("methods_pocket_compute")), 1.5**2
    full_length = {
        i for i, s in plan.stages.items() if s.spec.get("budget", {}).get("epochs") == 16
    }
    assert full_length <= set(build_plan(load_suite("methods_pocket")).stages)
    # Per image dml costs 2 times as much as kdep, mean_teacher 4/3 times. Each also runs for all
    # 16 epochs.
    assert {b["budget"]["epochs"] * 2 for b in training_specs(plan, "pretrain", "dml")} == {16, 32}
    assert {
        b["budget"]["epochs"] * 4 / 3 for b in training_specs(plan, "pretrain", "mean_teacher")
    } == {
        16,
        16 * 4 / 3,
    }
    for method, teacher in (
        ("takd", "logit_kd"),
        ("kdep_assistant", "kdep"),
        ("eskd_teacher", "supervised"),
    ):
        epochs = min(b["budget"]["epochs"] for b in training_specs(plan, "pretrain", method))
        teacher_epochs = min(
            b["budget"]["epochs"]
            for b in training_specs(plan, "pretrain", teacher)
            if b["student"]["name"] == "resnet18_w48"
        )
        assert epochs + wider * teacher_epochs == pytest.approx(16, abs=0.02)


LABELLED = dict(
    base="nkd",
    name="nkd_labels",
    labels_used=True,
    needs=["labels", "logits", "classes"],
    objective=dict(type="kdep_bench.objectives.nkd.NKDWithLabels"),
)


def test_the_plan_refuses_labels_of_classes_other_than_those_of_the_teacher():
    with pytest.raises(
        KdepError,
        match=r"'efficientnet_lite0' has 1000 classes and the pool of 'smoke' 9.* `logit_kd`",
    ):
        plan(LABELLED)
    # A teacher trained on the pool's labels has its classes; one trained on logits has others.
    plan({**LABELLED, "teacher": dict(student="resnet18_w48", method="supervised")})
    with pytest.raises(KdepError, match="compares the teacher's classes with the image labels"):
        plan({**LABELLED, "teacher": dict(student="resnet18_w48", method="takd")})
    plan("eskd", "continuation_labels")  # these methods have a separate head per set of classes


def test_the_plan_refuses_a_level_that_the_student_does_not_have():
    levels = dict(_delete_=True, s12="s16")
    with pytest.raises(KdepError, match="which method 'fitnets' reads"):
        plan(dict(base="fitnets", objective=dict(levels=levels)))


SCHEDULE_OF_TWO_EPOCHS = dict(curriculum=dict(span=2.0))


def test_a_schedule_longer_than_an_intermediate_teacher_s_run_is_refused():
    teacher = dict(
        student="resnet18_w48", method=dict(base="ctkd", objective=SCHEDULE_OF_TWO_EPOCHS)
    )
    plan(dict(base="eskd_teacher", teacher={**teacher, "epochs": 2.0}))
    with pytest.raises(KdepError, match="a schedule of method 'ctkd' lasts 2 epochs"):
        plan(dict(base="eskd_teacher", teacher={**teacher, "epochs": 1.0}))


def test_the_card_states_whether_an_intermediate_teacher_used_labels():
    methods = {m["name"]: m for m in load_suite("methods_pocket").methods}
    cards = [assistant_config(methods[m]) for m in ("eskd_teacher", "takd")]
    assert [c["card"]["labels_used"] for c in cards if c] == [True, False]


@pytest.mark.parametrize(
    ("weights", "cause"), [(None, "weights = None"), ("/no/such.pth", "does not exist")]
)
def test_given_weights_without_a_file_are_refused(weights, cause):
    with pytest.raises(KdepError, match=cause):
        plan(dict(base="given_weights", weights=dict(weights=weights)))


def test_a_suite_without_tasks_pre_trains_and_exports():
    a_plan = plan("kdep", tasks=[])
    assert not a_plan.runs
    assert {s.kind for s in a_plan.stages.values()} >= {"pretrain", "export"}
    assert not any(s.kind == "transfer" for s in a_plan.stages.values())

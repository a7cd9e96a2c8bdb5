"""The graph: what is shared, what an id depends on, and what is refused."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter

import pytest
from test_suite_config import build

from kdep_bench.errors import KdepError
from kdep_bench.files import safe_name
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite


def kinds(plan: Plan) -> Counter:
    return Counter(s.kind for s in plan.stages.values())


def changed(a: Plan, b: Plan) -> set[str]:
    return {s.kind for i, s in b.stages.items() if i not in a.stages}


def test_the_plan_of_a_real_suite_and_its_shared_stages():
    plan = build_plan(build(methods=["kdep", "svd", "supervised", "scratch"]))
    assert kinds(plan) == {
        "prepare": 1,
        "views": 1,
        "cache": 1,
        "align": 1,  # kdep and svd differ in the transform alone
        "pretrain": 5,  # scratch: one initialisation a transfer seed
        "export": 5,
        "transfer": 8,
    }
    seen: set[str] = set()
    for stage in plan.stages.values():  # upstream first
        assert set(stage.needs.values()) <= seen
        assert safe_name(stage.id) == stage.id
        seen.add(stage.id)
    by_name = {s.name: s for s in plan.stages.values() if s.kind == "pretrain"}
    assert set(by_name["resnet18_w32.kdep.s0"].needs) == {"views", "cache", "align"}
    assert set(by_name["resnet18_w32.supervised.s0"].needs) == {"views", "prepare"}
    assert not by_name["resnet18_w32.scratch.s0"].needs


def test_a_label_free_method_never_gets_the_labels():
    plan = build_plan(build())
    for stage in plan.stages.values():
        if stage.kind == "pretrain" and not stage.spec["method"]["labels_used"]:
            assert "prepare" not in stage.needs


def test_changing_T_touches_pretraining_and_its_transfers_alone():
    first_plan = build_plan(build())
    two = build_plan(build(methods=[{"base": "kdep", "transform": {"T": 0.3}}, "scratch"]))
    assert changed(first_plan, two) == {"pretrain", "export", "transfer"}
    assert kinds(two) == kinds(first_plan)
    new = [s for i, s in two.stages.items() if i not in first_plan.stages]
    assert all("kdep" in s.name for s in new)


@pytest.mark.parametrize(
    ("change", "kinds_changed"),
    [
        ({"claims": ["kdep_beats_scratch"]}, set()),
        ({"about": "other"}, set()),
        ({"runtime": {"cpus": {"transfer": 2}, "timeout": {"cache": 5.0}}}, set()),
        ({"methods": [{"base": "kdep", "source": "elsewhere"}, "scratch"]}, set()),
        ({"tasks": [{"base": "smoke_probe", "recipe": {"max_iter": 5}}]}, {"transfer"}),
        (
            {"budget": {"epochs": 2, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}}},
            {"pretrain", "export", "transfer"},
        ),
        (
            {
                "budget": {
                    "epochs": 1,
                    "batch": 8,
                    "views": 2,
                    "optimizer": {"type": "SGD", "lr": 0.1},
                }
            },
            {"views", "cache", "align", "pretrain", "export", "transfer"},
        ),
    ],
)
def test_what_a_change_touches(change, kinds_changed):
    assert changed(build_plan(build()), build_plan(build(**change))) == kinds_changed


def test_shares_and_seeds():
    plan = build_plan(build(shares=[1.0, 0.1], seeds={"pretrain": [0, 1], "transfer": [0, 1]}))
    count = kinds(plan)
    assert count["views"] == count["cache"] == 1  # a share is a subset of the one cache
    assert count["align"] == 2
    kdep = [c for c in plan.runs if c.method["name"] == "kdep"]
    scratch = [c for c in plan.runs if c.method["name"] == "scratch"]
    assert len(kdep) == 2 * 2 * 2
    assert len(scratch) == 2 * 2  # saw no image of any share: once
    assert {c.fraction for c in scratch} == {1.0}
    assert len({c.chain["pretrain"] for c in scratch}) == 4
    assert len({c.id for c in plan.runs}) == len(plan.runs)


def test_diagonal_seeds():
    plan = build_plan(build(seeds={"pretrain": [0, 1], "transfer": [5, 6], "pairs": "diagonal"}))
    pairs = {(c.pretrain_seed, c.transfer_seed) for c in plan.runs}
    assert pairs == {(0, 5), (1, 6)}


def test_a_method_for_other_students_is_not_planned():
    plan = build_plan(build(methods=["kdep", "imagenet"]))
    assert {c.method["name"] for c in plan.runs} == {"kdep"}
    with pytest.raises(KdepError, match="contains no run"):
        build_plan(build(methods=["imagenet"]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": None}, "needs a teacher"),
        ({"methods": [{"base": "kdep", "needs": ["labels", "pooled"]}]}, "labels_used=False"),
        (
            {"methods": [{"base": "scratch", "align": {"type": "svd"}}]},
            "has `align` but no objective",
        ),
        ({"runtime": {"cpus": {"pretran": 1}}}, "did you mean pretrain"),
    ],
)
def test_impossible_pairs_fail_when_planned(change, says):
    with pytest.raises(KdepError, match=says):
        build_plan(build(**change))


def test_a_student_wider_than_its_teacher_needs_a_policy():
    suite = build()
    narrow = {"name": "narrow", "width": 128}
    suite = suite.model_copy(update={"teachers": {"resnet18_w32": narrow}})
    with pytest.raises(KdepError, match="256 channels and the teacher 'narrow' only 128"):
        build_plan(suite)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"sign": "plain"}, "128 channels and map s16 of the teacher only 112"),
        ({"sign": "pair"}, "did you mean pairs"),
        ({"levels": {"_delete_": True, "s64": "s32"}}, "s64"),
    ],
)
def test_a_level_that_no_basis_can_serve_is_refused_before_anything_runs(objective, says):
    arm = {"base": "kdep_maps", "objective": objective}
    build_plan(build(methods=["kdep_maps"]))
    with pytest.raises(KdepError, match=says):
        build_plan(build(methods=[arm]))


def test_pairs_of_an_odd_level_are_refused_before_anything_runs():
    suite = build(methods=["kdep_maps"])
    odd = json.loads(json.dumps(suite.students[0]))
    odd["pyramid"]["channels"][2] = 127
    with pytest.raises(KdepError, match="127 channels, but sign='pairs' needs an even number"):
        build_plan(suite.model_copy(update={"students": [odd]}))


def test_logits_from_a_teacher_without_any():
    suite = build(methods=[{"base": "kdep", "needs": ["logits"]}])
    mute = {"name": "mute", "has_logits": False}
    with pytest.raises(KdepError, match="has none"):
        build_plan(suite.model_copy(update={"teachers": {"resnet18_w32": mute}}))


def ten_thousand() -> Suite:
    seeds = {"pretrain": list(range(25)), "transfer": list(range(25))}
    tasks = [{"base": "pocket_det", "name": f"det{k}"} for k in range(8)]
    return build(tasks=tasks, seeds=seeds, methods=["kdep", "svd"], shares=[1.0])


def test_planning_10000_stages_is_fast_and_small():
    suite = ten_thousand()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    plan = build_plan(suite)
    spent = time.process_time() - begun
    assert len(plan.stages) > 10_000
    assert spent < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_a_schedule_longer_than_the_run_is_refused_when_planned():
    weight = {"type": "kdep_bench.schedules.linear.Linear", "start": 1, "end": 0, "span": 99}
    objective = {
        "_delete_": True,
        "type": "kdep_bench.objectives.weighted_sum.WeightedSum",
        "parts": {"f": {"objective": {"type": "x"}, "weight": weight}},
    }
    with pytest.raises(KdepError, match="schedule of 99 epochs"):
        build_plan(build(methods=[{"base": "kdep", "objective": objective}]))


def test_comparing_views_needs_two_of_them_in_a_batch():
    budget = {"epochs": 1, "batch": 8, "views": 1, "optimizer": {"type": "SGD", "lr": 0.1}}
    build_plan(build(methods=["view_gram"], budget={**budget, "views": 2}))
    for wrong in ({}, {"views": 3}):
        with pytest.raises(KdepError, match="compares several views of an image"):
            build_plan(build(methods=["view_gram"], budget={**budget, **wrong}))


def cache_specs(plan: Plan) -> list[dict]:
    return [s.spec for s in plan.stages.values() if s.kind == "cache"]


def test_options_of_the_budget_that_are_not_used_are_in_no_spec():
    budget = {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}}
    plain = build_plan(build(budget=budget))
    defaults = {"teacher": "cached", "accumulate": 1, "ema": None, "compile": None}
    assert build_plan(build(budget={**budget, **defaults})).stages.keys() == plain.stages.keys()
    used = build_plan(build(budget={**budget, "accumulate": 2, "ema": 0.9}))
    specs = [s.spec["budget"] for s in used.stages.values() if "budget" in s.spec]
    assert all(s["accumulate"] == 2 and s["ema"] == 0.9 and "compile" not in s for s in specs)
    assert changed(plain, used) == {"pretrain", "export", "transfer"}
    with pytest.raises(KdepError, match="3 micro-batches"):
        build_plan(build(budget={**budget, "accumulate": 3}))


def test_logits_that_follow_from_the_pooled_feature_are_not_stored():
    plain = build_plan(build(methods=["kdep", "scratch"]))
    both = build_plan(build(methods=["kdep", "logit_kd", "scratch"]))
    assert cache_specs(both) == cache_specs(plain)
    (logit,) = [s for s in both.stages.values() if s.kind == "pretrain" and "logit" in s.name]
    assert set(logit.needs) == {"views", "cache"}
    assert not changed(both, plain)


def test_other_logits_are_stored_once_for_all_methods():
    suite = build(methods=["kdep", "logit_kd", {"base": "logit_kd", "name": "kd2"}])
    teacher = dict(suite.teachers["resnet18_w32"] or {})
    teacher["card"] = {}
    plan = build_plan(suite.model_copy(update={"teachers": {"resnet18_w32": teacher}}))
    (spec,) = cache_specs(plan)
    assert spec["outputs"] == ["logits"]


def test_a_live_teacher_is_given_the_images_and_no_labels():
    budget = {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}, "teacher": "live"}
    plan = build_plan(build(budget=budget, methods=["kdep", "logit_kd", "supervised"]))
    by_name = {s.name.split(".")[1]: s for s in plan.stages.values() if s.kind == "pretrain"}
    assert set(by_name["kdep"].needs) == {"views", "cache", "align", "images"}
    assert set(by_name["logit_kd"].needs) == {"views", "images"}
    assert by_name["logit_kd"].spec["teacher"]["name"] == "efficientnet_lite0"
    assert "teacher" not in by_name["supervised"].spec
    assert set(by_name["supervised"].needs) == {"views", "prepare"}


def test_logits_of_a_teacher_without_any_and_maps_of_a_student_without_any_are_refused():
    suite = build(methods=["logit_kd"])
    mute = {"name": "mute", "has_logits": False}
    with pytest.raises(KdepError, match="'mute' has none"):
        build_plan(suite.model_copy(update={"teachers": {"resnet18_w32": mute}}))
    maps = [{"base": "logit_kd", "needs": ["maps"]}]
    flat = [{"base": "resnet18_w32", "pyramid": {"_delete_": True}}]
    with pytest.raises(KdepError, match="config has no `pyramid`"):
        build_plan(build(methods=maps, students=flat))


def test_maps_have_a_cache_of_their_own_with_the_rows_and_levels_that_are_read():
    plain = build_plan(build(methods=["kdep"], shares=[0.5]))
    both = build_plan(build(methods=["kdep", "nfd", "fitnets"], shares=[0.5]))
    assert not changed(both, plain)  # the arms without maps keep every stage
    own, other = sorted(cache_specs(both), key=len)
    assert set(own) == {"teacher"}
    assert other["outputs"] == ["maps.s16", "maps.s32"]  # of four
    assert other["share"] == 0.5


def chain(**more) -> dict:
    told = {"student": "resnet18_w32", "method": "kdep", **more}
    return {"base": "kdep", "name": "hop", "teacher": told}


def test_an_assistant_is_a_method_whose_export_is_the_teacher():
    plan = build_plan(build(methods=["kdep", {**chain(epochs=0.5), "align": {"type": "svd"}}]))
    cache = next(s for s in plan.stages.values() if s.kind == "cache" and "export" in s.needs)
    made = plan.stages[cache.needs["export"]]
    assert plan.stages[made.needs["pretrain"]].spec["budget"]["epochs"] == 0.5
    assert cache.spec["teacher"]["name"] == "resnet18_w32.kdep.0.5ep"
    assert cache.needs["pretrain"] == made.needs["pretrain"]
    run = next(c for c in plan.runs if c.method["name"] == "hop")
    assert run.chain["teacher.export"] == made.id
    assert run.chain["cache"] == cache.id
    assert "teacher" not in plan.stages[run.chain["pretrain"]].spec["method"]
    # The whole budget is the very arm of the suite, not another one.
    same = build_plan(build(methods=["kdep", chain()]))
    hop, kdep = (next(c for c in same.runs if c.method["name"] == n) for n in ("hop", "kdep"))
    assert hop.chain["teacher.export"] == kdep.chain["export"]


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        (
            [{**chain(), "teacher": {"student": "resnet18_w32", "method": "scratch"}}],
            "is not trained",
        ),
        ([chain(epochs=99.0)], "is 99, but the budget has 1 epochs"),
        (
            [{**chain(), "teacher": {"student": "resnet18_w32", "method": "supervised"}}],
            "has a label-free policy",
        ),
        ([{**chain(), "base": "logit_kd"}], "needs logits, but the teacher 'resnet18_w32.kdep'"),
        ([{**chain(), "base": "nfd"}], "needs feature maps, but the teacher"),
        ([{**chain(), "teacher": {"student": "nobody", "method": "kdep"}}], "nobody"),
        ([{**chain(), "teacher": {"student": "resnet18_w32"}}], "lacks the key 'method'"),
    ],
)
def test_impossible_assistants_are_refused_when_planned(methods, says):
    with pytest.raises(KdepError, match=says):
        build_plan(build(methods=methods))


def test_a_chain_that_loops_is_refused(tmp_path):
    import shutil

    from kdep_bench.suite.config import CONFIGS, build_suite, load_suite

    shutil.copytree(CONFIGS, tmp_path / "configs")
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"configs/methods/{name}.py").write_text(
            f"method = dict(name={name!r}, source='x', family='feature', objective=dict(type='x'), "
            f"teacher=dict(student='resnet18_w32', method={other!r}))\n"
        )
    smoke = load_suite("smoke")
    raw = dict(
        name="loop",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=["a"],
        tasks=["smoke_probe"],
        budget=smoke.budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    with pytest.raises(KdepError, match="form a loop: a <- b <- a"):
        build_suite(raw, tmp_path / "configs")


def test_nothing_left_to_learn_from_is_refused_when_planned():
    stop = {"type": "kdep_bench.schedules.until.Until", "stop": 0.5}
    objective = {
        "_delete_": True,
        "type": "kdep_bench.objectives.weighted_sum.WeightedSum",
        "parts": {"f": {"objective": {"type": "x"}, "weight": stop}},
    }
    with pytest.raises(KdepError, match="are 0 after 50%"):
        build_plan(build(methods=[{"base": "kdep", "objective": objective}]))
    build_plan(build(methods=["eskd"]))


def test_methods_pocket_shares_budget_and_methods_with_the_other_suites():
    from kdep_bench.suite.config import load_suite

    rivals, full = build_plan(load_suite("methods_pocket")), build_plan(load_suite("pocket_full"))
    dense = build_plan(load_suite("methods_pocket_dense"))
    bars = {c.id for c in rivals.runs if c.method["name"] in ("supervised", "scratch")}
    assert len(bars) == 18
    assert bars <= set(full.stages)
    (kdep,) = {c.chain["align"] for c in rivals.runs if c.method["name"] == "kdep"}
    assert kdep in full.stages  # with the data, views and cache under it; its rate is the grid's
    trained = {i for i, s in dense.stages.items() if s.kind == "pretrain"}
    assert trained <= set(rivals.stages)
    assert len({len(s) for s in _seeds(rivals).values()}) == 1  # no arm has fewer seeds


def _seeds(plan: Plan) -> dict[str, set[int]]:
    out: dict[str, set[int]] = {}
    for c in plan.runs:
        out.setdefault(f"{c.method['name']} {c.task['name']}", set()).add(c.pretrain_seed)
    return out

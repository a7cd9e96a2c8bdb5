"""The planned stages: which are shared, what an id depends on, and what is refused."""

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

REGRESSION = {"type": "kdep_bench.objectives.feature_regression.FeatureRegression"}


def kinds(plan: Plan) -> Counter:
    """The number of stages per kind."""
    return Counter(s.kind for s in plan.stages.values())


def new_kinds(old: Plan, new: Plan) -> set[str]:
    """Kinds of the stages that are only in the plan `new`."""
    return {s.kind for i, s in new.stages.items() if i not in old.stages}


def test_methods_share_stages_with_equal_inputs():
    plan = build_plan(build(methods=["kdep", "svd", "supervised", "scratch"]))
    assert kinds(plan) == {
        "prepare": 1,
        "views": 1,
        "cache": 1,
        "align": 1,  # kdep and svd differ only in the transform
        "pretrain": 5,  # scratch: one initialisation per transfer seed
        "export": 5,
        "transfer": 8,
    }
    upstream_ids: set[str] = set()
    for stage in plan.stages.values():  # upstream first
        assert set(stage.needs.values()) <= upstream_ids
        assert safe_name(stage.id) == stage.id
        upstream_ids.add(stage.id)
    by_name = {s.name: s for s in plan.stages.values() if s.kind == "pretrain"}
    assert set(by_name["resnet18_w32.kdep.s0"].needs) == {"views", "cache", "align"}
    assert set(by_name["resnet18_w32.supervised.s0"].needs) == {"views", "prepare"}
    assert not by_name["resnet18_w32.scratch.s0"].needs


def test_a_label_free_method_never_gets_the_labels():
    plan = build_plan(build())
    for stage in plan.stages.values():
        if stage.kind == "pretrain" and not stage.spec["method"]["labels_used"]:
            assert "prepare" not in stage.needs


def test_a_changed_T_changes_only_pre_training_export_and_transfer():
    first_plan = build_plan(build())
    changed_plan = build_plan(build(methods=[{"base": "kdep", "transform": {"T": 0.3}}, "scratch"]))
    assert new_kinds(first_plan, changed_plan) == {"pretrain", "export", "transfer"}
    assert kinds(changed_plan) == kinds(first_plan)
    new = [s for i, s in changed_plan.stages.items() if i not in first_plan.stages]
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
def test_a_change_of_the_suite_changes_only_stages_that_depend_on_it(change, kinds_changed):
    assert new_kinds(build_plan(build()), build_plan(build(**change))) == kinds_changed


def test_data_fractions_share_the_cache_and_seeds_multiply_runs():
    plan = build_plan(build(shares=[1.0, 0.1], seeds={"pretrain": [0, 1], "transfer": [0, 1]}))
    count = kinds(plan)
    assert count["views"] == count["cache"] == 1  # a data fraction uses a part of the cache
    assert count["align"] == 2
    kdep = [c for c in plan.runs if c.method["name"] == "kdep"]
    scratch = [c for c in plan.runs if c.method["name"] == "scratch"]
    assert len(kdep) == 2 * 2 * 2  # data fractions x pre-training seeds x transfer seeds
    assert len(scratch) == 2 * 2  # not pre-trained, so planned for one data fraction
    assert {c.fraction for c in scratch} == {1.0}
    assert len({c.chain["pretrain"] for c in scratch}) == 4
    assert len({c.id for c in plan.runs}) == len(plan.runs)


def test_diagonal_seeds_are_paired_in_order():
    plan = build_plan(build(seeds={"pretrain": [0, 1], "transfer": [5, 6], "pairs": "diagonal"}))
    pairs = {(c.pretrain_seed, c.transfer_seed) for c in plan.runs}
    assert pairs == {(0, 5), (1, 6)}


def test_a_method_for_other_students_is_not_planned():
    plan = build_plan(build(methods=["kdep", "imagenet"]))
    assert {c.method["name"] for c in plan.runs} == {"kdep"}
    with pytest.raises(KdepError, match="contains no run"):
        build_plan(build(methods=["imagenet"]))


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_a_suite_whose_parts_contradict_each_other_is_refused_when_planned(change, message):
    with pytest.raises(KdepError, match=message):
        build_plan(build(**change))


def test_a_student_wider_than_its_teacher_needs_a_policy():
    suite = build()
    narrow = {"type": "builtins.dict", "name": "narrow", "width": 128}
    suite = suite.model_copy(update={"teachers": {"resnet18_w32": narrow}})
    with pytest.raises(KdepError, match="256 channels and the teacher 'narrow' only 128"):
        build_plan(suite)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"sign": "plain"}, "128 channels and map s16 of the teacher only 112"),
        ({"sign": "pair"}, "did you mean pairs"),
        ({"levels": {"_delete_": True, "s64": "s32"}}, "s64"),
    ],
)
def test_a_level_that_cannot_be_aligned_is_refused_when_planned(objective, message):
    method = {"base": "kdep_maps", "objective": objective}
    build_plan(build(methods=["kdep_maps"]))
    with pytest.raises(KdepError, match=message):
        build_plan(build(methods=[method]))


def test_sign_pairs_with_an_odd_number_of_channels_is_refused_when_planned():
    suite = build(methods=["kdep_maps"])
    odd = json.loads(json.dumps(suite.students[0]))
    odd["pyramid"]["channels"][2] = 127
    with pytest.raises(KdepError, match="127 channels, but sign='pairs' needs an even number"):
        build_plan(suite.model_copy(update={"students": [odd]}))


def test_logits_of_a_teacher_without_logits_are_refused():
    suite = build(methods=[{"base": "kdep", "needs": ["logits"]}])
    without_logits = {"type": "builtins.dict", "name": "plain", "has_logits": False}
    with pytest.raises(KdepError, match="has none"):
        build_plan(suite.model_copy(update={"teachers": {"resnet18_w32": without_logits}}))


def suite_of_10000_stages() -> Suite:
    """A suite with more than 10,000 stages."""
    seeds = {"pretrain": list(range(25)), "transfer": list(range(25))}
    tasks = [{"base": "pocket_det", "name": f"det{k}"} for k in range(8)]
    return build(tasks=tasks, seeds=seeds, methods=["kdep", "svd"], shares=[1.0])


def test_planning_10000_stages_takes_under_2_s_and_300_mb():
    suite = suite_of_10000_stages()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    plan = build_plan(suite)
    cpu_s = time.process_time() - start
    assert len(plan.stages) > 10_000
    assert cpu_s < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB


def test_a_schedule_longer_than_the_run_is_refused_when_planned():
    weight = {"type": "kdep_bench.schedules.linear.Linear", "start": 1, "end": 0, "span": 99}
    objective = {
        "_delete_": True,
        "type": "kdep_bench.objectives.weighted_sum.WeightedSum",
        "parts": {"f": {"objective": REGRESSION, "weight": weight}},
    }
    with pytest.raises(KdepError, match="lasts 99 epochs"):
        build_plan(build(methods=[{"base": "kdep", "objective": objective}]))


def test_an_objective_that_compares_views_requires_several_views_of_an_image_in_a_batch():
    budget = {"epochs": 1, "batch": 8, "views": 1, "optimizer": {"type": "SGD", "lr": 0.1}}
    build_plan(build(methods=["view_gram"], budget={**budget, "views": 2}))
    for wrong in ({}, {"views": 3}):  # one view; three views, which do not divide a batch of 8
        with pytest.raises(KdepError, match="compares several views of an image"):
            build_plan(build(methods=["view_gram"], budget={**budget, **wrong}))


def cache_specs(plan: Plan) -> list[dict]:
    """Specs of the caches."""
    return [s.spec for s in plan.stages.values() if s.kind == "cache"]


def test_unused_options_of_the_budget_are_in_no_spec():
    budget = {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}}
    plain = build_plan(build(budget=budget))
    defaults = {"teacher": "cached", "accumulate": 1, "ema": None, "compile": None}
    assert build_plan(build(budget={**budget, **defaults})).stages.keys() == plain.stages.keys()
    used = build_plan(build(budget={**budget, "accumulate": 2, "ema": 0.9}))
    specs = [s.spec["budget"] for s in used.stages.values() if "budget" in s.spec]
    assert all(s["accumulate"] == 2 and s["ema"] == 0.9 and "compile" not in s for s in specs)
    assert new_kinds(plain, used) == {"pretrain", "export", "transfer"}
    with pytest.raises(KdepError, match="3 micro-batches"):
        build_plan(build(budget={**budget, "accumulate": 3}))


def test_logits_that_can_be_computed_from_the_pooled_feature_are_not_stored():
    without = build_plan(build(methods=["kdep", "scratch"]))
    with_logit_kd = build_plan(build(methods=["kdep", "logit_kd", "scratch"]))
    assert cache_specs(with_logit_kd) == cache_specs(without)
    (logit,) = [
        s for s in with_logit_kd.stages.values() if s.kind == "pretrain" and "logit" in s.name
    ]
    assert set(logit.needs) == {"views", "cache"}
    assert not new_kinds(with_logit_kd, without)


def test_other_logits_are_stored_once_for_all_methods():
    suite = build(methods=["kdep", "logit_kd", {"base": "logit_kd", "name": "kd2"}])
    teacher = dict(suite.teachers["resnet18_w32"] or {})
    teacher["card"] = {}
    plan = build_plan(suite.model_copy(update={"teachers": {"resnet18_w32": teacher}}))
    (spec,) = cache_specs(plan)
    assert spec["outputs"] == ["logits"]


def test_a_method_with_a_live_teacher_reads_the_images_and_no_labels():
    budget = {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}, "teacher": "live"}
    plan = build_plan(build(budget=budget, methods=["kdep", "logit_kd", "supervised"]))
    by_name = {s.name.split(".")[1]: s for s in plan.stages.values() if s.kind == "pretrain"}
    assert set(by_name["kdep"].needs) == {"views", "cache", "align", "images"}
    assert set(by_name["logit_kd"].needs) == {"views", "images"}
    assert by_name["logit_kd"].spec["teacher"]["name"] == "efficientnet_lite0"
    assert "teacher" not in by_name["supervised"].spec
    assert set(by_name["supervised"].needs) == {"views", "prepare"}


def test_logits_of_a_teacher_without_logits_and_maps_of_a_student_without_maps_are_refused():
    suite = build(methods=["logit_kd"])
    without_logits = {"type": "builtins.dict", "name": "plain", "has_logits": False}
    with pytest.raises(KdepError, match="'plain' has none"):
        build_plan(suite.model_copy(update={"teachers": {"resnet18_w32": without_logits}}))
    maps = [{"base": "logit_kd", "needs": ["maps"]}]
    flat = [{"base": "resnet18_w32", "pyramid": {"_delete_": True}}]
    with pytest.raises(KdepError, match="config has no `pyramid`"):
        build_plan(build(methods=maps, students=flat))


def test_maps_have_a_separate_cache_of_the_rows_and_levels_that_are_read():
    without_maps = build_plan(build(methods=["kdep"], shares=[0.5]))
    with_maps = build_plan(build(methods=["kdep", "nfd", "fitnets"], shares=[0.5]))
    assert not new_kinds(with_maps, without_maps)  # methods without maps keep their stages
    pooled_cache, map_cache = sorted(cache_specs(with_maps), key=len)
    assert set(pooled_cache) == {"teacher"}
    assert map_cache["outputs"] == ["maps.s16", "maps.s32"]  # two of four levels
    assert map_cache["share"] == 0.5


def with_intermediate_teacher(**changes) -> dict:
    """A kdep whose teacher is a student pre-trained by kdep."""
    teacher = {"student": "resnet18_w32", "method": "kdep", **changes}
    return {"base": "kdep", "name": "hop", "teacher": teacher}


def test_the_export_of_an_intermediate_teacher_is_the_teacher():
    plan = build_plan(
        build(methods=["kdep", {**with_intermediate_teacher(epochs=0.5), "align": {"type": "svd"}}])
    )
    cache = next(s for s in plan.stages.values() if s.kind == "cache" and "export" in s.needs)
    export = plan.stages[cache.needs["export"]]
    assert plan.stages[export.needs["pretrain"]].spec["budget"]["epochs"] == 0.5
    assert cache.spec["teacher"]["name"] == "resnet18_w32.kdep.0.5ep"
    assert cache.needs["pretrain"] == export.needs["pretrain"]
    run = next(c for c in plan.runs if c.method["name"] == "hop")
    assert run.chain["teacher.export"] == export.id
    assert run.chain["cache"] == cache.id
    assert "teacher" not in plan.stages[run.chain["pretrain"]].spec["method"]
    # With the complete budget, the intermediate teacher is the suite's own kdep.
    same = build_plan(build(methods=["kdep", with_intermediate_teacher()]))
    hop, kdep = (next(c for c in same.runs if c.method["name"] == n) for n in ("hop", "kdep"))
    assert hop.chain["teacher.export"] == kdep.chain["export"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            [
                {
                    **with_intermediate_teacher(),
                    "teacher": {"student": "resnet18_w32", "method": "scratch"},
                }
            ],
            "is not trained",
        ),
        ([with_intermediate_teacher(epochs=99.0)], "is 99, but the budget has 1 epochs"),
        (
            [
                {
                    **with_intermediate_teacher(),
                    "teacher": {"student": "resnet18_w32", "method": "supervised"},
                }
            ],
            "has a label-free policy",
        ),
        (
            [{**with_intermediate_teacher(), "base": "logit_kd"}],
            "needs logits, but the teacher 'resnet18_w32.kdep'",
        ),
        ([{**with_intermediate_teacher(), "base": "nfd"}], "needs feature maps, but the teacher"),
        (
            [{**with_intermediate_teacher(), "teacher": {"student": "nobody", "method": "kdep"}}],
            "nobody",
        ),
        (
            [{**with_intermediate_teacher(), "teacher": {"student": "resnet18_w32"}}],
            "lacks the key 'method'",
        ),
    ],
)
def test_impossible_intermediate_teachers_are_refused_when_planned(methods, message):
    with pytest.raises(KdepError, match=message):
        build_plan(build(methods=methods))


def test_intermediate_teachers_that_form_a_loop_are_refused(tmp_path):
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


def test_loss_weights_that_are_all_0_after_some_steps_are_refused():
    stop = {"type": "kdep_bench.schedules.until.Until", "stop": 0.5}
    objective = {
        "_delete_": True,
        "type": "kdep_bench.objectives.weighted_sum.WeightedSum",
        "parts": {"f": {"objective": REGRESSION, "weight": stop}},
    }
    with pytest.raises(KdepError, match="are 0 after 50%"):
        build_plan(build(methods=[{"base": "kdep", "objective": objective}]))
    build_plan(build(methods=["eskd"]))


def test_methods_pocket_shares_budget_and_methods_with_the_other_suites():
    from kdep_bench.suite.config import load_suite

    methods_pocket, full = (
        build_plan(load_suite("methods_pocket")),
        build_plan(load_suite("pocket_full")),
    )
    dense = build_plan(load_suite("methods_pocket_dense"))
    reference_runs = {
        c.id for c in methods_pocket.runs if c.method["name"] in ("supervised", "scratch")
    }
    assert len(reference_runs) == 18
    assert reference_runs <= set(full.stages)
    (alignment,) = {c.chain["align"] for c in methods_pocket.runs if c.method["name"] == "kdep"}
    assert alignment in full.stages  # but not its pre-training, which has another learning rate
    trained = {i for i, s in dense.stages.items() if s.kind == "pretrain"}
    assert trained <= set(methods_pocket.stages)
    # Every method has the same number of seeds on every task.
    assert len({len(s) for s in seeds_by_method_and_task(methods_pocket).values()}) == 1


def seeds_by_method_and_task(plan: Plan) -> dict[str, set[int]]:
    """{"method task": its pre-training seeds}."""
    seeds: dict[str, set[int]] = {}
    for run in plan.runs:
        seeds.setdefault(f"{run.method['name']} {run.task['name']}", set()).add(run.pretrain_seed)
    return seeds

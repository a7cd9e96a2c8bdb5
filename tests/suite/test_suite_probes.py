"""Probes in a suite: which stages are added, and what is refused when the plan is built."""

from __future__ import annotations

from typing import Any

import pytest
from test_suite_config import GOOD, build, refusal

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite, names, resolve
from kdep_bench.suite.image_counts import check_counts
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.probes import READS
from kdep_bench.suite.schema import Suite

POCKET = {**GOOD, "data": "pocket", "tasks": ["pocket_probe"]}
ALL = sorted(set(names("probe")))


def refused(**change: Any) -> str:
    suite = build(**{**POCKET, **change})
    with pytest.raises(KdepError) as e:
        plan_and_count(suite)
    return str(e.value)


def plan_and_count(suite: Suite) -> None:
    """What the command does before anything runs."""
    build_plan(suite)
    check_counts(suite)


def test_a_suite_without_probes_plans_what_it_planned_before():
    plan = build_plan(build())
    assert not plan.probes
    assert not {s.kind for s in plan.stages.values()} & {"features", "probe"}


def test_probes_add_stages_and_change_none():
    without, plan = build_plan(build(**POCKET)), build_plan(build(**POCKET, probes=ALL))
    added = [s for i, s in plan.stages.items() if i not in without.stages]
    assert set(without.stages) <= set(plan.stages)
    assert {s.kind for s in added} == {"features", "probe"}  # the cache is that of kdep
    exports = [s for s in plan.stages.values() if s.kind == "export"]
    assert len([s for s in added if s.kind == "features"]) == 2 * len(exports)
    assert len(plan.probes) == len(ALL) * len(exports)


def test_one_extraction_serves_all_probes_of_a_backbone_and_all_suites():
    plan = build_plan(build(**POCKET, probes=ALL))
    ids = {r.chain["features"] for r in plan.probes if r.seed == 0 and "features" in r.chain}
    assert len(ids) == 2  # kdep and scratch
    lone = build_plan(build(**POCKET, probes=["retrieval"]))  # reads the test split alone
    assert {s.id for s in lone.stages.values() if s.kind == "features"} <= set(plan.stages)


def test_transfer_seeds_share_the_probes_of_one_pre_training():
    plan = build_plan(build(**POCKET, probes=["knn"]))  # two transfer seeds
    methods = [(r.method["name"], r.seed) for r in plan.probes]
    assert methods == [("kdep", 0), ("scratch", 0), ("scratch", 1)]


def test_variants_share_probes_of_equal_backbones():
    two = [{"budget": {"epochs": 1}}, {"budget": {"epochs": 2}}]
    plan = build_plan(build(**POCKET, probes=["knn"], variants=two))
    assert len({r.id for r in plan.probes}) == len(plan.probes) == 4


def test_an_unknown_probe_names_the_nearest():
    assert "did you mean" in refusal(probes=["kn"])
    assert "more than once" in refusal(probes=["knn", "knn"])


def test_a_wrong_argument_is_refused_before_anything_runs():
    assert "k = [0]" in refused(probes=[{"base": "knn", "k": [0]}])
    assert "k = []" in refused(probes=[{"base": "knn", "k": []}])
    assert "corruptions" in refused(probes=[{"base": "robustness", "corruptions": ["fog"]}])
    assert "teacher = 'own'" in refused(probes=[{"base": "cka", "teacher": "own"}])
    assert "T = 'warm'" in refused(probes=[{"base": "knn", "T": "warm"}])
    assert "key" in refusal(probes=[{"base": "knn", "kk": [1]}])


def test_a_type_that_is_no_probe_is_refused(monkeypatch):
    probe = {"name": "odd", "type": "kdep_bench.objectives.pkt.PKT", "weight": 1.0}
    suite = build(**POCKET).model_copy(update={"probes": [probe]})
    with pytest.raises(KdepError, match="is not a probe"):
        build_plan(suite)


def test_a_split_that_the_data_lack_is_refused_and_the_remedy_works():
    data = {"base": "pocket", "classify": {"val": 0}}
    change = {"data": data, "tasks": ["pocket_finetune"]}
    message = refused(**change, probes=["knn"])
    assert "probe 'knn' reads classify/val" in message
    assert "add classify.val to the data config, or remove the probe" in message
    plan = build_plan(build(**{**POCKET, **change}, probes=["retrieval"]))  # needs no val
    spec = next(s.spec for s in plan.stages.values() if s.kind == "features")
    assert spec["images"] == {"folder": "classify", "splits": ["train", "test"]}
    assert build_plan(build(**POCKET, probes=["knn"])).probes


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("detect", "has boxes"),
        ("cityscapes", "has masks"),
        ("photos", "has no splits"),
        ("classfy", "reads the folder 'classfy'"),
    ],
)
def test_a_folder_without_class_labels_or_splits_is_refused(folder, reason):
    assert reason in refused(probes=[{"base": "knn", "folder": folder}])


def test_official_data_have_no_class_folders():
    suite = load_suite("paper_r18")
    parts = [v.model_copy(update={"probes": [resolve("probe", "knn")]}) for v in suite.variants]
    with pytest.raises(KdepError, match="has no class folders"):
        build_plan(suite.model_copy(update={"variants": parts}))


def test_a_comparison_with_a_teacher_needs_one():
    alone = {"teacher": None, "methods": ["supervised", "scratch"]}
    message = refused(**alone, probes=["cka"])
    assert "the suite has none for student 'resnet18_w32'" in message
    own = {"base": "cka", "teacher": "method"}
    message = refused(probes=[own])
    assert "the method 'scratch' has none" in message
    assert "set teacher='suite'" in message
    assert build_plan(build(**{**POCKET, "methods": ["kdep"]}, probes=[own])).probes
    live = {**POCKET["budget"], "teacher": "live"}
    assert "budget.teacher is 'live'" in refused(budget=live, probes=["cka"])


def test_the_teacher_of_a_method_is_the_one_that_it_learned_from():
    """An assistant's cache, with the images of its data fraction, instead of the suite's."""
    change = {"methods": ["takd"], "shares": [0.1]}
    both = ["cka", {"base": "cka", "name": "cka_own", "teacher": "method"}]
    plan = build_plan(build(**{**POCKET, **change}, probes=both))
    suites, own = (
        next(r.chain["cache"] for r in plan.probes if r.probe["name"] == name)
        for name in ("cka", "cka_own")
    )
    assert "efficientnet_lite0" in suites
    assert "resnet18_w48" in own
    pools = {r.probe["name"]: plan.stages[r.chain["pool"]].spec["images"] for r in plan.probes}
    assert "share" not in pools["cka"]
    assert pools["cka_own"]["share"] == plan.stages[own].spec["share"] == 0.1


def test_more_shots_than_images_are_refused_and_the_remedy_works():
    data = {"base": "pocket", "classify": {"train": 100}}  # 12 of the smallest of 8 classes
    message = refused(data=data, probes=["few_shot"])
    assert "uses 16 training images per class, but the smallest class of classify/train" in message
    assert "has 12" in message
    suite = build(**{**POCKET, "data": data}, probes=[{"base": "few_shot", "shots": [1, 12]}])
    check_counts(suite)


def test_a_rank_from_fewer_images_than_dimensions_is_refused():
    message = refused(data={"base": "pocket", "classify": {"test": 200}}, probes=["effective_rank"])
    assert "needs more images than the student 'resnet18_w32' has dimensions (256)" in message


def test_the_published_suite_trains_nothing_that_methods_pocket_has_not():
    """Other stage ids would train 84 backbones again."""
    plan, made = build_plan(load_suite("pocket_probes")), build_plan(load_suite("methods_pocket"))
    added = [s.kind for i, s in plan.stages.items() if i not in made.stages]
    assert set(added) == {"features", "probe"}
    assert len(plan.probes) == 7 * 84


def test_the_planner_knows_what_probes_may_read():
    from kdep_bench.probes import base

    assert READS == base.READS
    for name in ALL:
        probe = resolve("probe", name)
        assert probe["about"], f"{name} has no description for the tables"

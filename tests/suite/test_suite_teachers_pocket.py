"""The suite `teachers_pocket`: its plan, its claims, and what it may not state about teachers."""

from __future__ import annotations

from collections import Counter

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return build_plan(load_suite("teachers_pocket"))


def test_thirteen_teachers_have_three_seeds_of_every_task_and_probe(plan):
    runs = Counter(r.teacher["name"] for r in plan.runs if r.teacher is not None)
    assert len(runs) == 13
    assert set(runs.values()) == {3 * 3}
    assert Counter(r.teacher["name"] for r in plan.probes) == dict.fromkeys(runs, 3)
    assert {r.method["name"] for r in plan.runs} == {"scratch", "kdep"}


def test_given_and_self_trained_teachers_are_measured_on_the_same_images(plan):
    samples = {str(plan.stages[run.chain["pool"]].spec["images"]) for run in plan.probes}
    assert len(samples) == 1
    assert "'share': 0.1" in samples.pop()
    caches = {"share" in plan.stages[run.chain["cache"]].spec for run in plan.probes}
    assert caches == {True, False}  # given teachers have caches of all images


def test_finished_runs_of_methods_pocket_are_not_run_again(plan):
    finished = build_plan(load_suite("methods_pocket")).stages
    runs = [r for r in plan.runs if (r.teacher or {}).get("name") in (None, "efficientnet_lite0")]
    assert len(runs) == 2 * 3 * 3
    assert {r.id for r in runs} <= set(finished)


def test_a_changed_network_has_no_reported_accuracy(plan):
    tops = {r.teacher["name"]: r.teacher.get("card", {}).get("top1") for r in plan.probes}
    assert {k for k, v in tops.items() if v} == {"efficientnet_lite0", "efficientnet_lite2"}


def test_a_claim_about_a_measure_needs_the_probe():
    suite = load_suite("teachers_pocket")
    with pytest.raises(KdepError, match="which the probe 'teacher' measures"):
        build_plan(
            suite.model_copy(
                update={
                    "probes": [],
                    "variants": [v.model_copy(update={"probes": []}) for v in suite.variants],
                }
            )
        )

"""Estimated times come from equal or similar stages, never from a median over different ones."""

from __future__ import annotations

from typing import Any

import engine_fakes as fakes
import pytest
from test_suite_config import SUITE, build

from kdep_bench.cli.run_suite_output import explain
from kdep_bench.engine import local_pool, state
from kdep_bench.forecast.costs import Costs
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.plan import build_plan

IMAGES, VIEWS, EPOCHS = 1000, 2, 4
BUDGET = {**SUITE["budget"], "epochs": EPOCHS, "views": VIEWS}


def plan_of(**change: Any) -> Plan:
    """A plan of the test suite with these changes."""
    return build_plan(build(**{"budget": BUDGET, "methods": ["kdep", "scratch"], **change}))


def stage(plan: Plan, kind: str, part: str = "") -> Stage:
    """The first stage of a kind with `part` in its name."""
    return next(s for s in plan.stages.values() if s.kind == kind and part in s.name)


def record(finished_stage: Stage, seconds: float, **outputs: Any) -> dict[str, Any]:
    """The stage.json of a finished stage."""
    default_outputs = {
        "views": {"images": IMAGES, "rows": IMAGES * VIEWS, "views": VIEWS},
        "prepare": {"counts": {"images": {"pool": IMAGES}}},
        "cache": {"rows": IMAGES * VIEWS},
        "align": {"rows": IMAGES * VIEWS},
    }.get(finished_stage.kind, {})
    return {
        "id": finished_stage.id,
        "kind": finished_stage.kind,
        "name": finished_stage.name,
        "spec": finished_stage.spec,
        "wall_s": seconds,
        "outputs": {**default_outputs, **outputs},
    }


def test_without_a_measurement_the_estimate_is_the_default_of_the_stage_kind():
    plan = plan_of()
    costs = Costs(plan)
    assert all(costs.seconds(s) == s.cost for s in plan.stages.values())


def test_scratch_is_not_used_to_estimate_a_trained_method():
    plan = plan_of()
    scratch, kdep = stage(plan, "pretrain", "scratch.s0"), stage(plan, "pretrain", "kdep")
    costs = Costs(plan, [record(stage(plan, "views"), 5.0), record(scratch, 0.2, images_seen=0)])
    assert costs.seconds(kdep) == kdep.cost == 600
    assert costs.seconds(stage(plan, "pretrain", "scratch.s1")) == pytest.approx(0.2)


def test_a_stage_that_makes_images_is_not_estimated_from_the_preparation_of_the_data():
    half = plan_of(methods=["fs_bbt"], shares=[0.5])
    data, made = stage(half, "prepare", "smoke"), stage(half, "prepare", "fs_bbt")
    costs = Costs(half, [record(data, 9.0), record(made, 40.0)])
    assert costs.seconds(data) == pytest.approx(9.0)
    assert costs.seconds(made) == pytest.approx(40.0)
    whole = plan_of(methods=["fs_bbt"])
    other = Costs(whole, [record(data, 9.0), record(made, 40.0)])
    assert other.seconds(stage(whole, "prepare", "fs_bbt")) == pytest.approx(80.0)  # twice as many
    unmeasured = Costs(whole, [record(data, 9.0)])  # the default of the kind is used
    assert unmeasured.seconds(stage(whole, "prepare", "fs_bbt")) == 300


def test_the_estimate_scales_with_data_fraction_and_epochs():
    finished_plan = plan_of()
    seen = IMAGES * EPOCHS
    records = [
        record(stage(finished_plan, "views"), 5.0),
        record(stage(finished_plan, "pretrain", "kdep"), 80.0, images_seen=seen),
    ]
    tenth = plan_of(shares=[0.1])
    assert Costs(tenth, records).seconds(stage(tenth, "pretrain", "kdep")) == pytest.approx(8.0)
    longer = plan_of(budget={**BUDGET, "epochs": 3 * EPOCHS})
    assert Costs(longer, records).seconds(stage(longer, "pretrain", "kdep")) == pytest.approx(240.0)
    other_t = plan_of(methods=[{"base": "kdep", "name": "hot", "transform": {"T": 0.9}}])
    assert Costs(other_t, records).seconds(stage(other_t, "pretrain", "hot")) == pytest.approx(80.0)
    # Stages with another precision or student are not comparable: the default of the kind is used.
    bfloat16 = plan_of(budget={**BUDGET, "precision": "bfloat16"})
    assert Costs(bfloat16, records).seconds(stage(bfloat16, "pretrain", "kdep")) == 600
    other_student = plan_of(students=["mobilenetv2_w50"], teacher="efficientnet_lite0")
    assert Costs(other_student, records).seconds(stage(other_student, "pretrain", "kdep")) == 600


def test_the_time_of_a_resumed_stage_includes_all_its_runs():
    plan = plan_of()
    kdep = stage(plan, "pretrain", "kdep")
    resumed = record(kdep, 3.0, images_seen=IMAGES * EPOCHS, train_s=90.0)
    costs = Costs(plan, [record(stage(plan, "views"), 1.0), resumed])
    assert costs.seconds(kdep) == pytest.approx(90.0)


def test_the_estimate_uses_stages_with_the_nearest_number_of_images_seen():
    plan = plan_of()
    kdep = stage(plan, "pretrain", "kdep")
    small = record(kdep, 10.0, images_seen=100)  # most of the 10 s are start-up time
    near = [record(kdep, s, images_seen=IMAGES * EPOCHS) for s in (70.0, 80.0, 90.0)]
    costs = Costs(plan, [record(stage(plan, "views"), 1.0), small, *near])
    assert costs.seconds(kdep) == pytest.approx(80.0)


def test_the_cache_is_estimated_by_its_rows_once_they_are_counted():
    finished_plan = plan_of()
    cache = record(stage(finished_plan, "cache"), 40.0)
    larger_plan = plan_of(budget={**BUDGET, "views": 2 * VIEWS})
    larger_cache = stage(larger_plan, "cache")
    # The number of images is not known yet, so the default is used.
    assert Costs(larger_plan, [cache]).seconds(larger_cache) == larger_cache.cost
    assert Costs(larger_plan, [cache, record(stage(larger_plan, "prepare"), 9.0)]).seconds(
        larger_cache
    ) == pytest.approx(80.0)


def test_a_task_s_time_is_scaled_by_its_iterations_and_not_used_for_other_tasks():
    plan = plan_of(tasks=["pocket_det", "pocket_probe"])
    costs = Costs(plan, [record(stage(plan, "transfer", "pocket_det"), 100.0)])
    assert costs.seconds(stage(plan, "transfer", "pocket_det")) == pytest.approx(100.0)
    assert costs.seconds(stage(plan, "transfer", "pocket_probe")) == 120  # the default of the kind
    iters = stage(plan, "transfer", "pocket_det").spec["task"]["recipe"]["iters"]
    half = plan_of(tasks=[{"base": "pocket_det", "recipe": {"iters": iters // 2}}])
    half_costs = Costs(half, [record(stage(plan, "transfer", "pocket_det"), 100.0)])
    assert half_costs.seconds(stage(half, "transfer")) == pytest.approx(50.0)


def test_a_dry_run_estimates_from_stages_no_longer_in_the_plan(tmp_path):
    fakes.run(fakes.diamond(a={"sleep": 0.4}), tmp_path)
    plan = fakes.diamond(a={"sleep": 0.41})
    statuses = state.statuses(plan, tmp_path)
    lines = explain(plan, statuses, tmp_path)
    line = next(x for x in lines.splitlines() if "make-a" in x)
    assert 0.4 <= float(line.split("~")[1].split(" s ")[0]) < 5
    assert "spec changed: sleep 0.4 -> 0.41" in line


def test_stages_of_an_older_format_are_ignored_in_estimates():
    plan = plan_of()
    costs = Costs(plan, [{"kind": "transfer", "id": "x", "name": "x", "spec": {}, "outputs": {}}])
    assert costs.seconds(stage(plan, "transfer")) == 120  # the default of the kind


def test_the_pool_of_workers_updates_its_estimates_while_it_runs(tmp_path):
    plan = fakes.chain(3, sleep=0.1)
    pool = local_pool.Pool(plan, tmp_path, state.statuses(plan, tmp_path), fakes.FAST)
    assert set(pool.seconds.values()) == {1.0}
    assert pool.run().ok
    last = list(plan.stages)[-1]
    assert 0.1 <= pool.seconds[last] < 1.0

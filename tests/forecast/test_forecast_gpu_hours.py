"""Which comparisons fit into a budget of GPU-hours: those with the lowest cost per run first.

A comparison is all runs of one teacher, data fraction, number of epochs, task and pair of
seeds. A stage that several comparisons share is counted once.
"""

from __future__ import annotations

import math

import pytest
from test_suite_config import build

from kdep_bench.forecast.gpu_hours import budget_error, comparisons, fit
from kdep_bench.forecast.work import Hours
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan


def small_plan(**change) -> Plan:
    """The plan of a small suite, with changes."""
    raw = {"methods": ["kdep", "svd", "supervised", "scratch"], "shares": [1.0, 0.1]}
    raw |= {"tasks": ["pocket_det", "pocket_probe"]}
    raw |= {"seeds": {"pretrain": [0, 1, 2], "transfer": [0, 1, 2], "pairs": "diagonal"}}
    return build_plan(build(**raw | change))


def costs(plan: Plan) -> dict[str, float | None]:
    """GPU-hours: 1 per pre-training, 10 per detection run, 1 per probe, 0 for other stages."""
    hours: dict[str, float | None] = dict.fromkeys(plan.stages, 0.0)
    for s in plan.stages.values():
        if s.kind == "pretrain" and "budget" in s.spec:
            hours[s.id] = 1.0
        elif s.kind == "transfer":
            hours[s.id] = 10.0 if "pocket_det" in s.name else 1.0
    return hours


def test_a_comparison_has_every_method_of_one_data_fraction_task_and_pair_of_seeds():
    plan = small_plan()
    runs = {c.id: c for c in plan.runs}
    all_comparisons = comparisons(plan, plan.stages)
    assert len(all_comparisons) == 2 * 2 * 3  # data fractions, tasks, pairs of seeds
    for comparison in all_comparisons:
        comparison_runs = [runs[c] for c in comparison.runs]
        assert sorted(c.method["name"] for c in comparison_runs) == [
            "kdep",
            "scratch",
            "supervised",
            "svd",
        ]
        assert {c.task["name"] for c in comparison_runs} == {comparison.task}
        assert {(c.pretrain_seed, c.transfer_seed) for c in comparison_runs} == {comparison.seeds}
        assert {c.fraction for c in comparison_runs if c.method["name"] != "scratch"} == {
            comparison.fraction
        }
    assert {c for comparison in all_comparisons for c in comparison.runs} == set(runs)
    selected_ids = {c.id for c in plan.runs if c.task["name"] == "pocket_det" and c.fraction == 0.1}
    selected = comparisons(plan, selected_ids)
    assert {c for comparison in selected for c in comparison.runs} == selected_ids


def test_the_paper_suite_is_divided_into_comparisons_by_teacher_and_epochs():
    plan = build_plan(load_suite("paper_r18"))
    all_comparisons = comparisons(plan, plan.stages)
    # 4 teachers, 3 numbers of epochs for each of 2 data fractions, 9 tasks, 3 seeds.
    assert len(all_comparisons) == 4 * 6 * 9 * 3
    assert {c for comparison in all_comparisons for c in comparison.runs} == {
        c.id for c in plan.runs
    }
    sizes = {(comparison.teacher, len(comparison.runs)) for comparison in all_comparisons}
    assert sizes == {
        ("resnet50", 5),
        ("swin_b", 5),
        ("microsoft_resnet50", 4),
        ("dinov2_vitb14", 4),
    }


def test_untrained_methods_are_compared_with_each_other():
    plan = small_plan(methods=["scratch"], tasks=["pocket_probe"])
    all_comparisons = comparisons(plan, plan.stages)
    assert all(len(comparison.runs) == 1 for comparison in all_comparisons)
    assert all_comparisons


def test_comparisons_with_the_lowest_cost_per_run_are_selected_and_shared_stages_count_once():
    plan = small_plan()
    hours, todo = costs(plan), set(plan.stages)
    # A seed's first probe comparison trains 3 methods and tests 4: 7 h for 4 runs.
    first = fit(plan, plan.stages, todo, hours, 7.0)
    assert [(c.task, c.fraction) for c in first.selected] == [("pocket_probe", 1.0)]
    assert first.hours == 7
    # For the other data fraction, scratch's probe is done: 6 h for 3 runs.
    second = fit(plan, plan.stages, todo, hours, 13.0)
    assert [c.fraction for c in second.selected] == [1.0, 0.1]
    assert {c.seeds for c in second.selected} == {first.selected[0].seeds}
    assert second.hours == 13
    total_hours = sum(v or 0.0 for v in hours.values())
    everything = fit(plan, plan.stages, todo, hours, total_hours)
    assert not everything.excluded
    assert everything.hours == pytest.approx(total_hours)
    assert [c.task for c in everything.selected] == sorted(
        (c.task for c in everything.selected), reverse=True
    )
    assert len(everything.selected) == 2 * 2 * 3


def test_a_too_small_budget_selects_nothing_and_finished_stages_cost_nothing():
    plan = small_plan()
    hours = costs(plan)
    assert not fit(plan, plan.stages, set(plan.stages), hours, 6.9).selected
    probes = {s.id for s in plan.stages.values() if "pocket_probe" in s.name}
    done = plan.upstream(probes)
    fitted = fit(plan, plan.stages, set(plan.stages) - done, hours, 0.0)
    assert {c.task for c in fitted.selected} == {"pocket_probe"}
    assert {c.task for c in fitted.excluded} == {"pocket_det"}
    assert fitted.summary(1.0)[1].startswith("not run, comparisons by task: pocket_det ")


def test_a_comparison_of_unknown_cost_is_never_selected():
    plan = small_plan()
    hours = costs(plan)
    for s in plan.stages.values():
        if s.kind == "transfer" and "pocket_det" in s.name:
            hours[s.id] = None
    fitted = fit(plan, plan.stages, set(plan.stages), hours, math.inf)
    assert {c.task for c in fitted.selected} == {"pocket_probe"}
    message = budget_error(fitted, Hours("from a test", hours), 1e9)
    assert message is not None
    assert "are not known" in str(message)


def test_a_run_that_exceeds_its_budget_is_refused():
    plan = small_plan()
    hours = costs(plan)
    total = sum(v or 0.0 for v in hours.values())
    fitted = fit(plan, plan.stages, set(plan.stages), hours, 20.0)
    message = budget_error(fitted, Hours("from a test", hours), 20.0)
    assert message is not None
    assert f"{total:,.1f} GPU-hours, from a test" in str(message)
    assert f"--fit-budget to run the {len(fitted.selected)} of" in str(message)
    nothing = budget_error(
        fit(plan, plan.stages, set(plan.stages), hours, 1.0), Hours("x", hours), 1.0
    )
    assert nothing is not None
    assert nothing.fix == "raise --budget-hours; not even one comparison fits"
    everything = fit(plan, plan.stages, set(plan.stages), hours, total)
    assert budget_error(everything, Hours("x", hours), total) is None

"""What fits a budget: whole comparisons, the cheapest a cell first, nothing paid twice."""

from __future__ import annotations

import math

import pytest
from test_suite_config import build

from kdep_bench.forecast.gpu_hours import comparisons, fit, refusal
from kdep_bench.forecast.work import Hours
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan


def little(**change) -> Plan:
    expected = {"methods": ["kdep", "svd", "supervised", "scratch"], "shares": [1.0, 0.1]}
    expected |= {"tasks": ["pocket_det", "pocket_probe"]}
    expected |= {"seeds": {"pretrain": [0, 1, 2], "transfer": [0, 1, 2], "pairs": "diagonal"}}
    return build_plan(build(**expected | change))


def costs(plan: Plan) -> dict[str, float | None]:
    """An hour a pre-training, ten of detection, one of the probe; the rest is free."""
    found: dict[str, float | None] = dict.fromkeys(plan.stages, 0.0)
    for s in plan.stages.values():
        if s.kind == "pretrain" and "budget" in s.spec:
            found[s.id] = 1.0
        elif s.kind == "transfer":
            found[s.id] = 10.0 if "pocket_det" in s.name else 1.0
    return found


def test_a_comparison_has_every_method_of_one_data_fraction_task_and_pair_of_seeds():
    plan = little()
    runs = {c.id: c for c in plan.runs}
    all_comparisons = comparisons(plan, plan.stages)
    assert len(all_comparisons) == 2 * 2 * 3
    for comparison in all_comparisons:
        mine = [runs[c] for c in comparison.runs]
        assert sorted(c.method["name"] for c in mine) == ["kdep", "scratch", "supervised", "svd"]
        assert {c.task["name"] for c in mine} == {comparison.task}
        assert {(c.pretrain_seed, c.transfer_seed) for c in mine} == {comparison.seeds}
        assert {c.fraction for c in mine if c.method["name"] != "scratch"} == {comparison.fraction}
    assert {c for comparison in all_comparisons for c in comparison.runs} == set(runs)
    some = {c.id for c in plan.runs if c.task["name"] == "pocket_det" and c.fraction == 0.1}
    few = comparisons(plan, some)
    assert {c for comparison in few for c in comparison.runs} == some


def test_the_paper_suite_falls_into_comparisons_by_teacher_and_length():
    plan = build_plan(load_suite("paper_r18"))
    all_comparisons = comparisons(plan, plan.stages)
    # 4 teachers, 3 lengths at each of 2 shares, 9 tasks, 3 seeds.
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
    plan = little(methods=["scratch"], tasks=["pocket_probe"])
    all_comparisons = comparisons(plan, plan.stages)
    assert all(len(comparison.runs) == 1 for comparison in all_comparisons)
    assert all_comparisons


def test_lowest_cost_per_run_first_and_shared_stages_count_once():
    plan = little()
    hours, todo = costs(plan), set(plan.stages)
    # A seed's first probe comparison trains three arms and tests four: 7 h for four cells.
    first = fit(plan, plan.stages, todo, hours, 7.0)
    assert [(c.task, c.fraction) for c in first.taken] == [("pocket_probe", 1.0)]
    assert first.hours == 7
    # Another share of that seed has scratch's probe already: 6 h for three cells.
    second = fit(plan, plan.stages, todo, hours, 13.0)
    assert [c.fraction for c in second.taken] == [1.0, 0.1]
    assert {c.seeds for c in second.taken} == {first.taken[0].seeds}
    assert second.hours == 13
    whole = sum(v or 0.0 for v in hours.values())
    every = fit(plan, plan.stages, todo, hours, whole)
    assert not every.left
    assert every.hours == pytest.approx(whole)
    assert [c.task for c in every.taken] == sorted((c.task for c in every.taken), reverse=True)
    assert len(every.taken) == 2 * 2 * 3


def test_nothing_fits_and_what_is_done_is_free():
    plan = little()
    hours = costs(plan)
    assert not fit(plan, plan.stages, set(plan.stages), hours, 6.9).taken
    probes = {s.id for s in plan.stages.values() if "pocket_probe" in s.name}
    done = plan.upstream(probes)
    left = fit(plan, plan.stages, set(plan.stages) - done, hours, 0.0)
    assert {c.task for c in left.taken} == {"pocket_probe"}
    assert {c.task for c in left.left} == {"pocket_det"}
    assert left.summary(1.0)[1].startswith("not run, comparisons by task: pocket_det ")


def test_a_comparison_of_unknown_cost_is_never_taken():
    plan = little()
    hours = costs(plan)
    for s in plan.stages.values():
        if s.kind == "transfer" and "pocket_det" in s.name:
            hours[s.id] = None
    fitted = fit(plan, plan.stages, set(plan.stages), hours, math.inf)
    assert {c.task for c in fitted.taken} == {"pocket_probe"}
    message = refusal(fitted, Hours("from a test", hours), 1e9)
    assert message is not None
    assert "are not known" in str(message)


def test_a_run_beyond_its_budget_is_refused():
    plan = little()
    hours = costs(plan)
    total = sum(v or 0.0 for v in hours.values())
    fitted = fit(plan, plan.stages, set(plan.stages), hours, 20.0)
    message = refusal(fitted, Hours("from a test", hours), 20.0)
    assert message is not None
    assert f"{total:,.1f} GPU-hours, from a test" in str(message)
    assert f"--fit-budget to run the {len(fitted.taken)} of" in str(message)
    assert (
        refusal(fit(plan, plan.stages, set(plan.stages), hours, total), Hours("x", hours), total)
        is None
    )

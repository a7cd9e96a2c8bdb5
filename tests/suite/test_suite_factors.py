"""Factors of an ablation: the grid of a suite, and cards that are refused when it is planned."""

from __future__ import annotations

from typing import Any

import pytest
from test_suite_config import build

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.factors import grid_of
from kdep_bench.suite.plan import build_plan


def method(name: str, base: str = "kdep", **factors: Any) -> dict[str, Any]:
    return dict(base=base, name=name, card=dict(factors=factors))


def test_the_ablation_is_a_product_of_its_factors_with_equal_budgets():
    suite = load_suite("ablation_pocket")
    plan = build_plan(suite)
    grid = grid_of([r.method for r in plan.runs], [r.student for r in plan.runs])
    assert grid is not None
    levels = dict(grid["levels"])
    assert levels["knowledge"] == ["logits", "hidden", "attention", "relation", "pairs"]
    assert levels["matching"] == ["last", "uniform", "clustered"]
    assert len(grid["methods"]) == 2 + 3 * 3
    assert len(grid["students"]) == len(levels["initialisation"]) * len(levels["shape"]) == 4
    budgets = {str(s.spec.get("budget")) for s in plan.stages.values() if s.kind == "pretrain"}
    assert len(budgets - {"None"}) == 1
    assert len(plan.runs) == (11 * 4 + 2) * 3 * 3


def test_factors_are_in_no_stage_id():
    with_factors = build(methods=["scratch", method("kdep", matching="last")])
    without = build(methods=["scratch", dict(base="kdep", name="kdep")])
    assert set(build_plan(with_factors).stages) == set(build_plan(without).stages)
    assert grid_of(without.methods, without.students) is None


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (["last"], "expected dict"),
        (dict(matching=3), "expected dict"),
        ({}, "expected dict"),
    ],
)
def test_a_card_with_other_factors_is_refused(factors, message):
    suite = build(methods=[dict(base="kdep", name="kdep", card=dict(factors=factors))])
    with pytest.raises(KdepError, match=message):
        build_plan(suite)


def test_two_methods_of_one_combination_are_refused():
    suite = build(methods=[method("kdep", matching="last"), method("svd2", "svd", matching="last")])
    with pytest.raises(KdepError, match=r"'kdep' and 'svd2' have the same `card\.factors`"):
        build_plan(suite)

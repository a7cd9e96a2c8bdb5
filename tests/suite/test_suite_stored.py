"""Plans of methods that read class probabilities, or train other networks with an optimiser.

The teacher's class probabilities have a separate cache; other caches do not change.
"""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from tests.suite.test_suite_methods import plan

TOO_MANY_CLASSES = dict(base="tinyvit", name="many", objective=dict(top_classes=1001))


def caches(*methods: Any) -> dict[str, Any]:
    """{id: spec} of the caches planned for these methods."""
    return {s.id: s.spec for s in plan(*methods).stages.values() if s.kind == "cache"}


def test_a_method_that_reads_class_probabilities_changes_no_other_method_s_cache():
    for other in ("kdep", "fitnets", "logit_kd"):
        without, with_probabilities = caches(other), caches(other, "tinyvit")
        assert without.items() <= with_probabilities.items()
        (spec,) = (s for i, s in with_probabilities.items() if i not in without)
        assert spec["outputs"] == ["probabilities.10"]
        assert spec["pooled"] is False


def test_more_probabilities_than_the_teacher_s_classes_are_refused():
    with pytest.raises(KdepError, match="the teacher 'efficientnet_lite0' has 1000 classes"):
        plan(TOO_MANY_CLASSES)
    assert plan(TOO_MANY_CLASSES | {"objective": dict(top_classes=1000)}).runs


def test_class_probabilities_of_a_teacher_without_a_classifier_are_refused():
    with pytest.raises(KdepError, match="needs class probabilities, but the teacher"):
        plan("tinyvit", teacher=dict(base="dinov2_vitb14"))


def test_networks_with_their_own_optimiser_are_refused_with_gradient_accumulation():
    budget = load_suite("smoke").budget.model_dump()
    assert plan("amal", budget=budget).runs
    with pytest.raises(KdepError, match="after each of the 2 micro-batches"):
        plan("amal", budget=budget | dict(accumulate=2))


def test_the_plan_checks_the_optimiser_of_the_other_networks_of_an_objective():
    negative_rate = dict(base="amal", objective=dict(optimizer=dict(type="SGD", lr=-1.0)))
    with pytest.raises(KdepError, match=r"objective\.optimizer has lr = -1\.0"):
        plan(negative_rate)

"""Budget and share options: planned where they are used, in no stage's identity where not."""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan


def plan(data: dict[str, Any] | None = None, **more: Any) -> Plan:
    suite = load_suite("smoke")
    raw = dict(
        name="budgets",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=["kdep", "supervised", "scratch"],
        tasks=["smoke_probe"],
        shares=[1.0, 0.1],
        budget=suite.budget.model_dump(exclude_defaults=True),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    built = build_suite(raw | more)
    return build_plan(built.model_copy(update={"data": built.data | data} if data else {}))


def ids(first_plan: Plan, kind: str) -> set[str]:
    return {i for i, s in first_plan.stages.items() if s.kind == kind}


def test_options_left_alone_are_in_no_spec():
    for stage in plan().stages.values():
        assert "share_by" not in stage.spec
        assert "epochs_over" not in stage.spec.get("budget", {})
    assert ids(plan(), "pretrain") == ids(plan(share_by="image"), "pretrain")


def test_a_share_per_class_reads_the_labels_and_changes_shares_below_one_alone():
    plain, drawn = plan(), plan(share_by="class")
    for kind in ("align", "pretrain"):
        kept = ids(plain, kind) & ids(drawn, kind)
        assert kept == {i for i in ids(plain, kind) if ".0.1" not in i}
        for i in ids(drawn, kind) - kept:
            assert drawn.stages[i].spec["share_by"] == "class"
            assert "prepare" in drawn.stages[i].needs


def test_a_share_per_class_of_unlabelled_data_is_refused():
    with pytest.raises(KdepError, match="have no labels"):
        plan(data={"labels": False}, share_by="class", methods=["kdep"])
    plan(data={"labels": False}, share_by="class", methods=["kdep"], shares=[1.0])


def test_epochs_over_the_pool_are_another_pre_training_for_shares_below_one_alone():
    budget = load_suite("smoke").budget.model_dump(exclude_defaults=True)
    plain, even = plan(), plan(budget=budget | {"epochs_over": "pool"})
    assert ids(plain, "align") == ids(even, "align")
    kept = ids(plain, "pretrain") & ids(even, "pretrain")
    assert kept == {i for i in ids(plain, "pretrain") if ".0.1" not in i}
    for i in ids(even, "pretrain") - kept:
        assert even.stages[i].spec["budget"]["epochs_over"] == "pool"


@pytest.mark.parametrize(
    ("change", "says"),
    [({"share_by": "colour"}, "share_by"), ({"shares": [0.1, 0.1]}, "more than once")],
)
def test_mistakes_raise_kdep_error(change: dict[str, Any], says: str):
    with pytest.raises(KdepError, match=says):
        plan(**change)

"""Options of the budget and of data fractions change only the ids of stages that use them."""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan


def plan(data: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """The plan of a small suite, with changes to it and (`data`) to its data config."""
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
    built = build_suite(raw | changes)
    return build_plan(built.model_copy(update={"data": built.data | data} if data else {}))


def ids(a_plan: Plan, kind: str) -> set[str]:
    """Ids of the plan's stages of a kind."""
    return {stage_id for stage_id, stage in a_plan.stages.items() if stage.kind == kind}


def test_options_at_their_defaults_are_in_no_spec():
    for stage in plan().stages.values():
        assert "share_by" not in stage.spec
        assert "epochs_over" not in stage.spec.get("budget", {})
    assert ids(plan(), "pretrain") == ids(plan(share_by="image"), "pretrain")


def test_a_fraction_per_class_reads_the_labels_and_changes_only_fractions_below_one():
    default, per_class = plan(), plan(share_by="class")
    for kind in ("align", "pretrain"):
        unchanged = ids(default, kind) & ids(per_class, kind)
        assert unchanged == {stage_id for stage_id in ids(default, kind) if ".0.1" not in stage_id}
        for stage_id in ids(per_class, kind) - unchanged:
            assert per_class.stages[stage_id].spec["share_by"] == "class"
            assert "prepare" in per_class.stages[stage_id].needs


def test_a_fraction_per_class_of_unlabelled_data_is_refused():
    with pytest.raises(KdepError, match="have no labels"):
        plan(data={"labels": False}, share_by="class", methods=["kdep"])
    plan(data={"labels": False}, share_by="class", methods=["kdep"], shares=[1.0])


def test_epochs_over_the_pool_change_only_pre_trainings_on_fractions_below_one():
    budget = load_suite("smoke").budget.model_dump(exclude_defaults=True)
    default, over_pool = plan(), plan(budget=budget | {"epochs_over": "pool"})
    assert ids(default, "align") == ids(over_pool, "align")
    unchanged = ids(default, "pretrain") & ids(over_pool, "pretrain")
    assert unchanged == {
        stage_id for stage_id in ids(default, "pretrain") if ".0.1" not in stage_id
    }
    for stage_id in ids(over_pool, "pretrain") - unchanged:
        assert over_pool.stages[stage_id].spec["budget"]["epochs_over"] == "pool"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"share_by": "colour"}, "share_by"), ({"shares": [0.1, 0.1]}, "more than once")],
)
def test_an_unknown_share_by_or_a_repeated_fraction_raises_kdep_error(
    change: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        plan(**change)

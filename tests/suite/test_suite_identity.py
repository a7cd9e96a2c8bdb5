"""What enters a stage's id: a changed input that kept the id would keep a wrong score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdep_bench.suite import kinds
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import Plan, build_plan, stage_id


def ids(plan: Plan) -> dict[str, set[str]]:
    """Stage ids by kind."""
    found: dict[str, set[str]] = {}
    for one in plan.stages.values():
        found.setdefault(one.kind, set()).add(one.id)
    return found


# Kind whose version is raised -> kinds that follow from it, all of whose stages run again.
FOLLOW = {
    "prepare": {"prepare", "views", "cache", "align", "pretrain", "export", "transfer"},
    "views": {"views", "cache", "align", "pretrain", "export", "transfer"},
    "cache": {"cache", "align", "pretrain", "export", "transfer"},
    "align": {"align", "pretrain", "export", "transfer"},
    "pretrain": {"pretrain", "export", "transfer"},
    "export": {"export", "transfer"},
    "transfer": {"transfer"},
}


@pytest.mark.parametrize("kind", FOLLOW)
def test_a_kind_s_version_changes_its_ids_and_all_that_follow(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the old scores of stages whose function now computes another result."""
    before = ids(build_plan(load_suite("smoke")))
    raised = replace(kinds.KINDS[kind], version=kinds.KINDS[kind].version + 1)
    table: Any = kinds.KINDS
    monkeypatch.setitem(table, kind, raised)
    after = ids(build_plan(load_suite("smoke")))
    assert before.keys() == after.keys()
    assert not before[kind] & after[kind]
    for other in before.keys() - FOLLOW[kind]:
        assert before[other] == after[other]
    changed = {k for k in before if not before[k] & after[k]}
    # An arm without a teacher has no cache and no alignment before its pre-training.
    assert changed <= FOLLOW[kind]
    for other in FOLLOW[kind] & before.keys():
        assert before[other] != after[other]


@pytest.mark.parametrize(
    "change",
    [
        dict(kind="align"),
        dict(name="b"),
        dict(version=2),
        dict(spec={"seed": 1, "views": 2}),
        dict(spec={"seed": 0, "views": 3}),
        dict(spec={"seed": 0, "views": 2, "share": 1.0}),
        dict(needs={"prepare": "prepare-y"}),
        dict(needs={"views": "prepare-x"}),
        dict(needs={}),
    ],
    ids=str,
)
def test_each_part_of_a_stage_enters_its_id(change: dict[str, Any]) -> None:
    """Not one id for two kinds, names, versions, specs or inputs."""
    one = dict(
        kind="views",
        name="a",
        version=1,
        spec={"seed": 0, "views": 2},
        needs={"prepare": "prepare-x"},
    )
    plain: Any = stage_id
    assert plain(Plan(""), **one) != plain(Plan(""), **{**one, **change})
    assert plain(Plan(""), **one) == plain(Plan(""), **dict(reversed(one.items())))

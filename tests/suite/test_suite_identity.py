"""What enters a stage's id: a changed input that kept the id would keep a wrong score."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kdep_bench.paths import ROOT as REPO
from kdep_bench.suite import kinds
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan, make_stage_id
from kdep_bench.suite.plan import build_plan


def ids(plan: Plan) -> dict[str, set[str]]:
    """Stage ids by kind."""
    found: dict[str, set[str]] = {}
    for stage in plan.stages.values():
        found.setdefault(stage.kind, set()).add(stage.id)
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
    plain: Any = make_stage_id
    assert plain(Plan(""), **one) != plain(Plan(""), **{**one, **change})
    assert plain(Plan(""), **one) == plain(Plan(""), **dict(reversed(one.items())))


@pytest.mark.parametrize("name", ["pocket", "methods_pocket"])
def test_published_records_are_those_of_the_suites_as_they_are_now(name: str) -> None:
    """An id that changes without a reason would run hours of finished stages again."""
    planned = {run.id: dict(run.chain) for run in build_plan(load_suite(name)).runs}
    records = [json.loads(p.read_text()) for p in (REPO / "results" / name / "records").iterdir()]
    assert {r["id"]: r["stages"] for r in records} == planned


def test_planner_only_keys_reach_no_stage() -> None:
    """The spec of a stage enters its id: an edit of these keys changes no result."""
    suite = load_suite("smoke")
    suite.data["labels"] = True
    plan = build_plan(suite)
    specs = {kind: [s.spec for s in plan.stages.values() if s.kind == kind] for kind in FOLLOW}
    assert not specs["prepare"][0].keys() & {"name", "type", "labels", "pool_classes"}
    for spec in specs["pretrain"]:
        planning = {"align", "family", "label_policy", "students", "needs", "teacher", "optimizer"}
        assert not spec["method"].keys() & planning


def test_each_kind_of_stage_runs_where_and_as_often_as_it_may() -> None:
    """A pre-training without its GPU takes weeks; one that resumes wrongly, or is cut by another
    kind's time limit, gives no number at all."""
    table = {
        kind: (k.gpu, k.ddp, k.resumable, k.timeout / 3600, k.cpus)
        for kind, k in kinds.KINDS.items()
    }
    assert table == {
        "prepare": (False, False, False, 12, 0),
        "views": (False, False, False, 12, 1),
        "cache": (True, False, True, 12, 1),
        "align": (False, False, False, 12, 1),
        "pretrain": (True, True, True, 72, 1),
        "export": (False, False, False, 12, 1),
        "transfer": (True, True, False, 72, 1),
        "features": (True, False, False, 12, 1),
        "probe": (True, False, False, 12, 1),
    }
    plan = build_plan(load_suite("smoke"))
    for stage in plan.stages.values():
        gpu, _, resumable, hours, cpus = table[stage.kind]
        assert (stage.gpus, stage.resumable, stage.cpus) == (int(gpu), resumable, cpus)
        assert stage.timeout == hours * 3600

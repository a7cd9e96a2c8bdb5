"""The id of a stage depends on every input; otherwise a changed input would keep the old score."""

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
    """{kind: ids of its stages}."""
    ids_by_kind: dict[str, set[str]] = {}
    for stage in plan.stages.values():
        ids_by_kind.setdefault(stage.kind, set()).add(stage.id)
    return ids_by_kind


# {kind whose version is raised: kinds whose stages can run again}
RERUN_KINDS = {
    "prepare": {"prepare", "views", "cache", "align", "pretrain", "export", "transfer"},
    "views": {"views", "cache", "align", "pretrain", "export", "transfer"},
    "cache": {"cache", "align", "pretrain", "export", "transfer"},
    "align": {"align", "pretrain", "export", "transfer"},
    "pretrain": {"pretrain", "export", "transfer"},
    "export": {"export", "transfer"},
    "transfer": {"transfer"},
}


@pytest.mark.parametrize("kind", RERUN_KINDS)
def test_a_kind_s_version_changes_the_ids_of_its_stages_and_of_stages_that_need_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise scores of the former version would be shown."""
    before = ids(build_plan(load_suite("smoke")))
    raised = replace(kinds.KINDS[kind], version=kinds.KINDS[kind].version + 1)
    table: Any = kinds.KINDS
    monkeypatch.setitem(table, kind, raised)
    after = ids(build_plan(load_suite("smoke")))
    assert before.keys() == after.keys()
    assert not before[kind] & after[kind]
    for other in before.keys() - RERUN_KINDS[kind]:
        assert before[other] == after[other]
    changed = {k for k in before if not before[k] & after[k]}
    # A method without a teacher has no cache and no alignment.
    assert changed <= RERUN_KINDS[kind]
    for other in RERUN_KINDS[kind] & before.keys():
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
def test_the_id_of_a_stage_depends_on_each_of_its_parts(change: dict[str, Any]) -> None:
    """Two kinds, names, versions, specs or inputs never have the same id."""
    parts = dict(
        kind="views",
        name="a",
        version=1,
        spec={"seed": 0, "views": 2},
        needs={"prepare": "prepare-x"},
    )
    stage_id: Any = make_stage_id
    assert stage_id(Plan(""), **parts) != stage_id(Plan(""), **{**parts, **change})
    assert stage_id(Plan(""), **parts) == stage_id(Plan(""), **dict(reversed(parts.items())))


@pytest.mark.parametrize("name", ["pocket", "methods_pocket"])
def test_published_records_have_the_ids_of_the_present_suites(name: str) -> None:
    """An id changed by accident would make finished stages run again for hours."""
    planned = {run.id: dict(run.chain) for run in build_plan(load_suite(name)).runs}
    records = [json.loads(p.read_text()) for p in (REPO / "results" / name / "records").iterdir()]
    assert {r["id"]: r["stages"] for r in records} == planned


def test_keys_that_only_planning_reads_are_in_no_spec() -> None:
    """These keys change no result, so they must not change an id."""
    suite = load_suite("smoke")
    suite.data["labels"] = True
    plan = build_plan(suite)
    specs = {kind: [s.spec for s in plan.stages.values() if s.kind == kind] for kind in RERUN_KINDS}
    assert not specs["prepare"][0].keys() & {"name", "type", "labels", "pool_classes"}
    for spec in specs["pretrain"]:
        planning = {"align", "family", "label_policy", "students", "needs", "teacher", "optimizer"}
        assert not spec["method"].keys() & planning


def test_each_kind_of_stage_has_the_stated_resources() -> None:
    """The GPU, DDP, resuming, time limit in hours and cores of each kind."""
    table = {
        kind: (k.gpu, k.ddp, k.resumable, k.timeout / 3600, k.cpus)
        for kind, k in kinds.KINDS.items()
    }
    assert table == {
        "prepare": (False, False, False, 12, 0),
        "synthesis": (True, False, False, 12, 0),
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

"""The full-scale suites are planned completely, and a few stages of a rehearsal run.

A rehearsal runs every stage of a suite on tiny generated data; `make rehearse` runs all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdep_bench.paths import ROOT as REPO
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.rehearse import rehearsed

SUITES = ("paper_r18", "paper_mnv2")


def plan(name: str) -> Plan:
    """The plan of a rehearsal."""
    return build_plan(rehearsed(load_suite(name)))


@pytest.mark.parametrize("name", SUITES)
def test_the_full_scale_protocol_is_complete(name: str) -> None:
    """4 teachers, 5 methods, 2 data fractions with 3 budgets each, 9 data sets, 3 seeds."""
    suite = load_suite(name)
    assert {t["name"] for v in suite.variants for t in v.teachers.values() if t} == {
        "resnet50",
        "microsoft_resnet50",
        "swin_b",
        "dinov2_vitb14",
    }
    families = {m["family"] for v in suite.variants for m in v.methods}
    assert families == {"feature", "logit", "supervised", "none"}
    budgets = {(v.shares[0], v.budget.epochs) for v in suite.variants}  # data fraction, epochs
    assert budgets == {(1.0, 9), (1.0, 18), (1.0, 90), (0.1, 90), (0.1, 180), (0.1, 900)}
    # Both data fractions have the same three numbers of images seen.
    assert sorted({round(fraction * epochs, 6) for fraction, epochs in budgets}) == [9, 18, 90]
    full = build_plan(suite)
    assert len({c.task["recipe"]["set"] + c.task["family"] for c in full.runs}) == 9
    assert {c.transfer_seed for c in full.runs} == {0, 1, 2}
    # 10 pairs of teacher and method at 6 budgets, supervised at 6, scratch; 9 tasks, 3 seeds.
    assert len({c.id for c in full.runs}) == len(full.runs) == (10 * 6 + 6 + 1) * 9 * 3


def test_the_suite_of_kdep_on_feature_maps_shares_caches_and_tasks_with_the_protocol() -> None:
    maps, protocol = (build_plan(load_suite(n)) for n in ("paper_maps_r18", "paper_r18"))
    new = {c.method["name"] for c in maps.runs if c.id not in protocol.stages}
    assert new == {"kdep_maps_4", "fitnets_4"}
    # Two data fractions with 5 methods each, and scratch; 9 tasks, 3 seeds.
    assert len(maps.runs) == (2 * 5 + 1) * 9 * 3
    added = [maps.stages[i] for i in maps.stages.keys() - protocol.stages.keys()]
    assert {s.kind for s in added} == {"pretrain", "export", "transfer"}  # no cache of maps
    levels = {"s4": "layer1", "s8": "layer2", "s16": "layer3", "s32": "layer4"}
    assert all(s.spec["teacher"]["maps"] == levels for s in added if s.kind == "pretrain")
    assert build_plan(rehearsed(load_suite("paper_maps_r18"))).runs


@pytest.mark.parametrize("name", SUITES)
def test_the_rehearsal_has_every_method_and_task(name: str) -> None:
    def methods(a_plan: Plan) -> set[tuple[str, str, bool]]:
        """(method, teacher, whether all data are used) of every run."""
        return {
            (c.method["name"], (c.teacher or {}).get("name", "").removeprefix("random_"),
             c.fraction == 1) for c in a_plan.runs
        }  # fmt: skip

    full, small = build_plan(load_suite(name)), plan(name)
    assert methods(small) == methods(full)
    assert {c.task["name"] for c in small.runs} == {c.task["name"] for c in full.runs}


@pytest.mark.e2e
def test_a_sample_of_rehearsed_stages_runs(tmp_path: Path) -> None:
    """All stages up to a pre-training by logit_kd, and a transfer of scratch."""
    rehearsal = plan("paper_r18")
    logit_kd = next(
        c for c in rehearsal.runs
        if c.method["name"] == "logit_kd" and c.teacher and "resnet50" in c.teacher["name"]
    )  # fmt: skip
    scratch = next(
        c for c in rehearsal.runs if c.method["name"] == "scratch" and c.task["name"] == "dtd"
    )
    expected = [logit_kd.chain["pretrain"], scratch.id]
    command = [sys.executable, str(REPO / "tools/run_suite.py"), "paper_r18", "--rehearse"]
    for stage_id in expected:
        command += ["--only", stage_id]
    command += ["--work-dir", str(tmp_path), "--plain"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    trained = json.loads((tmp_path / expected[0] / "stage.json").read_text())["outputs"]
    assert trained["steps"] == 2
    assert not trained["labels_used"]
    scored = json.loads((tmp_path / expected[1] / "stage.json").read_text())["outputs"]
    assert scored["gate"]["coverage"] == 1.0
    records = list((tmp_path / "results/rehearsal_paper_r18/records").glob("*dtd*scratch*.json"))
    assert [json.loads(r.read_text())["status"] for r in records] == ["ok"]

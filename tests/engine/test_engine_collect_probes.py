"""Probe records made from stage directories; they are separate from transfer records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
from test_suite_config import build

from kdep_bench.engine import state, work_dir
from kdep_bench.engine.collect import collect
from kdep_bench.files import read_json, write_json
from kdep_bench.results.records import probe_record, store
from kdep_bench.suite.plan import build_plan

VALUES = [{"name": "top1", "value": 0.25, "better": "larger", "percent": True, "chance": 0.125}]


def make_suite(tmp_path: Path, **change: Any):
    """(suite, plan, work dir, results folder) of a suite with two methods and two probes."""
    suite = build(**{"methods": ["kdep", "scratch"], "probes": ["knn", "cka"], **change})
    return suite, build_plan(suite, fakes.PRETEND), tmp_path / "work", tmp_path / "results"


def run_with_outputs(plan, work: Path) -> None:
    """Runs all stages and gives the fake ones the outputs of real ones."""
    assert fakes.run(plan, work).ok
    for stage in plan.stages.values():
        out = work / stage.id
        outputs: dict[str, Any] = {}
        if stage.kind == "features":
            outputs = {"extract_s": 2.0}
        if stage.kind == "probe":
            outputs = {"values": VALUES, "notes": ["k = 5 chosen on val (0.3)"], "probe_s": 0.5}
        if outputs:
            content = read_json(out / "stage.json")
            del content["sum"]
            state.write_stage(out, {**content, "outputs": {**content["outputs"], **outputs}})


def read_records(results: Path) -> dict[tuple[str, str, int], probe_record.ProbeRecord]:
    """(probe, method, seed) -> probe record."""
    records, damaged = probe_record.read(results)
    assert not damaged
    return {(r.probe, r.method.method, r.seed): r for r in records}


def test_every_probe_has_a_record_separate_from_transfer_records(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    counts = collect(suite, plan, work, results)
    assert counts["probes"] == {"ok": 6, "failed": 0, "missing": 0, "written": 6}
    probe_records = read_records(results)
    assert set(probe_records) == {
        (p, *row) for p in ("knn", "cka") for row in (("kdep", 0), ("scratch", 0), ("scratch", 1))
    }
    record = probe_records["knn", "kdep", 0]
    assert record.values[0].value == 0.25
    assert record.features_s == 2.0
    assert record.probe_s == 0.5
    assert record.epochs == 1
    assert record.folder == "classify"
    assert record.teacher == "efficientnet_lite0"
    assert probe_records["knn", "scratch", 1].epochs is None
    assert len(store.read(results).runs) == counts["ok"] == len(plan.runs)
    second_collect = collect(suite, plan, work, results)
    assert second_collect["probes"]["written"] == 0
    assert "report" not in second_collect
    page = (results / "leaderboard.md").read_text()
    assert "## Probes" in page
    assert "| kdep | 25.0 (1) |" in page
    assert "Probes" in (results / "index.html").read_text()


def test_a_suite_without_probes_writes_no_folder_section_or_file_of_probes(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, probes=[])
    run_with_outputs(plan, work)
    assert "probes" not in collect(suite, plan, work, results)
    assert not (results / "probes").exists()
    assert not (results / "probes.csv").exists()
    assert "Probes" not in (results / "leaderboard.md").read_text()


def test_a_probe_s_record_names_the_failed_stage_before_it(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    run = next(r for r in plan.probes if r.method["name"] == "kdep" and r.probe["name"] == "knn")
    for stage in (run.id, run.chain["features"]):
        (work / stage / "stage.json").unlink()
    failed = {run.chain["features"]: "the backbone's features contain NaN."}
    assert collect(suite, plan, work, results, failed)["probes"]["failed"] == 1
    record = read_records(results)["knn", "kdep", 0]
    assert record.status == "failed"
    assert record.error == "features failed: the backbone's features contain NaN."
    assert not record.values
    assert "failed" in (results / "leaderboard.md").read_text()


def test_recorded_values_survive_pruning_and_a_new_results_folder_marks_them_missing(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    collect(suite, plan, work, results)
    empty_work_dir = tmp_path / "gone"
    assert collect(suite, plan, empty_work_dir, results)["probes"]["ok"] == 6
    assert collect(suite, plan, empty_work_dir, tmp_path / "other")["probes"]["missing"] == 6
    assert "missing" in (tmp_path / "other" / "leaderboard.md").read_text()


def test_a_damaged_stage_fails_its_probe(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    run = next(r for r in plan.probes if r.probe["name"] == "cka")
    (work / run.id / "stage.json").write_text("{")
    collect(suite, plan, work, results)
    record = read_records(results)["cka", run.method["name"], run.seed]
    assert record.status == "failed"
    assert "cannot be used" in (record.error or "")


@pytest.mark.parametrize("outputs", [{"values": 3}, {"values": [{"name": "a", "value": "x"}]}, {}])
def test_invalid_output_values_fail_only_their_probe(tmp_path, outputs):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    out = work / plan.probes[0].id
    content = read_json(out / "stage.json")
    del content["sum"]
    state.write_stage(out, {**content, "outputs": {"probe_s": 1.0, "notes": [], **outputs}})
    counts = collect(suite, plan, work, results)["probes"]
    assert (counts["ok"], counts["failed"]) == (5, 1)
    error = read_records(results)[
        plan.probes[0].probe["name"], plan.probes[0].method["name"], 0
    ].error
    assert f"run the suite again with --force {plan.probes[0].id}" in (error or "")
    assert "move the file" not in (error or "")


def test_records_of_removed_probes_are_moved_to_superseded(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    collect(suite, plan, work, results)
    suite, plan, _, _ = make_suite(tmp_path, probes=["knn"])
    counts = collect(suite, plan, work, results)
    assert counts["probes"]["ok"] == 3
    assert len(list((results / "superseded" / "probes").glob("*.json"))) == 3
    assert "### cka" not in (results / "leaderboard.md").read_text()
    suite, plan, _, _ = make_suite(tmp_path, probes=[])
    collect(suite, plan, work, results)
    assert not list((results / "probes").glob("*.json"))
    assert "Probes" not in (results / "leaderboard.md").read_text()


def test_untimed_suites_store_no_times_of_probes(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, runtime={"timed": False})
    run_with_outputs(plan, work)
    collect(suite, plan, work, results)
    record = read_records(results)["knn", "kdep", 0]
    assert record.features_s is record.probe_s is None


def test_pruning_keeps_the_stages_of_probes(tmp_path):
    """Features take minutes to compute, so `--gc` must not remove stages that results cite."""
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    collect(suite, plan, work, results)
    entries = work_dir.survey(work, work_dir.citations([results]), {})
    assert not work_dir.prunable(entries, True)


def test_a_damaged_probe_record_is_named_in_the_report(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    run_with_outputs(plan, work)
    collect(suite, plan, work, results)
    path = probe_record.paths(results)[0]
    path.write_text("{")
    copy = results / "probes" / "copy.json"
    copy.write_text(probe_record.paths(results)[1].read_text())
    from kdep_bench.results import build as rebuild

    rebuild(results, suite.name, [], None)
    page = (results / "leaderboard.md").read_text()
    assert "a file named after the record's id" in page
    assert "is not valid JSON" in page
    copy.unlink()
    assert collect(suite, plan, work, results)["probes"]["written"] == 1  # written again
    write_json(path, {})
    assert "no schema version" in probe_record.read(results)[1][0]

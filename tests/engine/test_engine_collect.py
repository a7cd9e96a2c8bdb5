"""Records made from real stage directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
from test_suite_config import build

from kdep_bench.engine import state
from kdep_bench.engine.collect import (
    CURVE_POINTS,
    _Chains,
    _cost_fields,
    _data_notes,
    _learning_rate,
    _planned_epochs,
    _teacher_fields,
    check_folder,
    collect,
    make_record,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.results.records import record as records
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import TransferRun
from kdep_bench.suite.plan import build_plan


def make_suite(tmp_path: Path, **change):
    """(suite, plan, work dir, results folder) of the test suite with these changes."""
    suite = build(**change)
    return suite, build_plan(suite, fakes.PRETEND), tmp_path / "work", tmp_path / "results"


def load_record(results: Path, method: str, seed: int = 0) -> records.Record:
    """The record of a method and transfer seed."""
    all_records = [records.load(p) for p in (results / "records").glob("*.json")]
    return next(r for r in all_records if r.arm.method == method and r.seed.transfer == seed)


def add_outputs(out: Path, **outputs: Any) -> None:
    """Adds outputs to the stage.json of a finished stage."""
    stage = read_json(out / "stage.json")
    del stage["sum"]
    state.write_stage(out, {**stage, "outputs": {**stage["outputs"], **outputs}})


def test_the_table_shows_requested_epochs_if_rounding_changed_them(tmp_path):
    """Rounding to whole steps can change the number of epochs; the table must report it."""
    # 1 epoch was requested. The fake pre-training reports 2 steps of 8 images over 10 images, which
    # are 1.6 epochs, and the invented output `epochs` of 2, which the table shows.
    suite, plan, work, results = make_suite(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    assert load_record(results, "kdep").budget.epochs_asked == 1.0
    text = (results / "leaderboard.md").read_text()
    assert "was pre-trained for 2 epochs instead of the 1 of its budget" in text
    budget = {"epochs": 1.6, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}}
    suite, plan, work, results = make_suite(tmp_path / "exact", budget=budget)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    assert load_record(results, "kdep").budget.epochs_asked is None
    record = next((results / "records").glob("*kdep*")).read_text()
    assert "epochs_asked" not in record  # so that published records do not change
    assert "of its budget" not in (results / "leaderboard.md").read_text()


def test_epochs_of_the_complete_pool_are_converted_to_epochs_of_the_data_fraction():
    budget = dict(epochs=1.0, batch=8, epochs_over="pool")
    outputs = dict(steps=12, images=10, image_list={"of": 100})
    stage = dict(outputs=outputs, spec=dict(budget=budget))
    assert _planned_epochs(stage) is None  # 12 steps are the requested 12.5, rounded
    assert _planned_epochs({**stage, "outputs": {**outputs, "steps": 6}}) == 10.0
    assert _planned_epochs(None) is None
    assert _planned_epochs(dict(outputs=dict(steps=0), spec={})) is None


def test_a_record_has_the_figures_of_all_its_stages(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, methods=["kdep", "supervised", "scratch"])
    assert fakes.run(plan, work).ok
    summary = collect(suite, plan, work, results)
    assert {k: summary[k] for k in ("ok", "failed", "missing", "written")} == {
        "ok": 6,
        "failed": 0,
        "missing": 0,
        "written": 6,
    }
    kdep = load_record(results, "kdep", 1)
    assert kdep.value == 0.26
    assert kdep.arm.label_policy == "label-free"
    assert kdep.student.flops == 9
    assert kdep.teacher is not None
    assert kdep.teacher.checksum == "c" * 64
    assert kdep.align is not None
    assert kdep.align.std_ratio_after_transform == 2.0
    assert kdep.student.params == 7
    assert kdep.data.fingerprint == "f" * 64
    assert kdep.cost.cache_bytes == 1000
    # After a resume the last attempt was short; the outputs have the time of all attempts.
    assert kdep.cost.cache_s == 5000
    assert kdep.cost.pretrain_s == 7000
    assert set(kdep.stages) == {
        "prepare", "views", "cache", "align", "pretrain", "export", "transfer"
    }  # fmt: skip
    assert len(kdep.curves["loss"]) == CURVE_POINTS
    assert kdep.curves["loss"][-1][0] == 999
    assert (results / kdep.pictures[0]).read_bytes() == b"png"
    assert load_record(results, "supervised").teacher is None
    assert load_record(results, "supervised").arm.label_policy == "labels"
    assert load_record(results, "scratch").arm.label_policy == "none"
    assert (results / "leaderboard.md").exists()


def test_stages_with_former_output_names_give_the_same_record(tmp_path):
    """Their stage.json has former names of outputs; a new name must not make a stage run again."""
    suite, plan, work, results = make_suite(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    expected = load_record(results, "kdep")
    assert expected.align is not None
    assert (expected.align.explained_variance_ratio, expected.align.std_ratio_after_align) == (
        0.9,
        8.0,
    )

    def use_former_names(record):
        outputs = record["outputs"]
        outputs["energy_kept"] = outputs.pop("explained_variance_ratio")
        outputs["std_ratio_after_svd"] = outputs.pop("std_ratio_after_align")

    aligned = [s for s in plan.stages.values() if s.kind == "align"]
    for stage in aligned:
        edit_stage_json(state.folder(work, stage), use_former_names)
    assert aligned
    for path in (results / "records").glob("*.json"):
        path.unlink()
    collect(suite, plan, work, results)
    assert load_record(results, "kdep") == expected


def test_collecting_unchanged_stages_again_writes_no_file(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*") if p.is_file()}
    summary = collect(suite, plan, work, results)
    assert summary["written"] == 0
    assert "report" not in summary
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*") if p.is_file()} == before


def test_the_cache_s_size_is_charged_in_proportion_to_the_data_fraction(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, shares=[1.0, 0.1], methods=["kdep"])
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    all_records = [records.load(p) for p in (results / "records").glob("*.json")]
    assert {r.cost.cache_bytes for r in all_records if r.data.share == 0.1} == {100}
    assert {r.cost.cache_bytes for r in all_records if r.data.share == 1.0} == {1000}


def test_an_untimed_suite_keeps_wall_times_out_of_its_records(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, methods=["kdep"], runtime={"timed": False})
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    cost = load_record(results, "kdep").cost
    seconds = (cost.pretrain_s, cost.cache_s, cost.align_s, cost.transfer_s, cost.images_per_s)
    assert seconds == (None,) * 5
    assert cost.cache_bytes == 1000
    assert set(plan.stages) == set(make_suite(tmp_path, methods=["kdep"])[1].stages)


def test_missing_and_failed_runs_have_records(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    summary = collect(suite, plan, work, results)
    assert summary["missing"] == 4
    work.mkdir(exist_ok=True)
    (work / "break-transfers").touch()
    outcome = fakes.run(plan, work)
    summary = collect(suite, plan, work, results, outcome.failed)
    assert summary["failed"] == 4
    assert str(load_record(results, "kdep").error).startswith(
        "a broken transfer; expected a whole one. Fix: "
    )
    (work / "break-transfers").unlink()
    assert fakes.run(plan, work).ok
    assert collect(suite, plan, work, results)["ok"] == 4


def test_an_upstream_failure_is_named(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, methods=["kdep"])
    cache = next(i for i in plan.stages if i.startswith("cache-"))
    summary = collect(suite, plan, work, results, {cache: "no teacher."})
    assert summary["failed"] == 2
    assert load_record(results, "kdep").error == "cache failed: no teacher."


def test_pruning_a_work_dir_removes_no_result(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    summary = collect(suite, plan, tmp_path / "elsewhere", results)
    assert summary["ok"] == 4
    assert summary["written"] == 0


def test_a_file_in_the_place_of_the_results_folder_is_refused_before_the_run(tmp_path):
    check_folder(tmp_path / "new/results", "tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(KdepError, match=r"because .*/file is a file. Fix: .* --results-dir"):
        check_folder(tmp_path / "file/results", "tiny")


def test_records_of_removed_runs_are_moved_to_superseded(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    for _ in range(2):  # a record may be superseded more than once
        suite, plan, work, results = make_suite(tmp_path)
        collect(suite, plan, work, results)
        for run in plan.runs:
            image = results / "pictures" / run.id / "worst.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(b"png")
        suite, plan, work, results = make_suite(tmp_path, methods=["scratch"])
        collect(suite, plan, work, results)
        for folder in (results, results / "superseded"):
            image_folders = {path.name for path in (folder / "pictures").iterdir()}
            records = folder if folder.name == "superseded" else folder / "records"
            assert {path.stem for path in records.glob("*.json")} == image_folders
            assert len(image_folders) == 2


def test_a_truncated_record_is_rewritten(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    path = next((results / "records").glob("*.json"))
    complete = path.read_bytes()
    path.write_bytes(complete[:100])
    assert collect(suite, plan, work, results)["written"] == 1
    assert path.read_bytes() == complete


def test_the_advised_fix_for_a_damaged_record_works(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    path = next((results / "records").glob("*.json"))
    complete = path.read_bytes()
    path.write_bytes(complete[:100])
    with pytest.raises(KdepError, match="move the file to another folder; running the suite with"):
        records.load(path)
    path.rename(tmp_path / path.name)
    assert collect(suite, plan, work, results)["written"] == 1
    assert path.read_bytes() == complete


def edit_stage_json(path: Path, change) -> None:
    """Changes a stage.json and updates its checksum, as another tool could."""
    record = state.read_stage(path)
    assert record is not None
    change(record)
    state.write_stage(path, record)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["outputs"].update(value="0.99"), "value: "),
        (lambda r: r["outputs"].update(value=True), "value: "),
        (lambda r: r["outputs"]["metrics"].update(miou=1e308), "metrics"),
        (lambda r: r["outputs"].update(curves=5), "cannot be made into a record (AttributeError"),
        (lambda r: r["outputs"].update(gate=[]), "gate: "),
        (lambda r: r["outputs"].pop("gate"), "lack gate"),
        (lambda r: r["outputs"].update(pictures=["../../x.png"]), "outside the stage's directory"),
        (lambda r: r.update(wall_s="3"), "is damaged (wall_s is '3')"),
        (lambda r: r["files"].update({"gone.txt": [1, "0" * 64]}), "its file gone.txt is missing"),
    ],
)
def test_an_invalid_stage_json_marks_only_its_run_as_failed(tmp_path, change, reason):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    damaged_run = next(run for run in plan.runs if run.method["name"] == "kdep")
    edit_stage_json(work / damaged_run.id, change)
    summary = collect(suite, plan, work, results)
    assert (summary["ok"], summary["failed"], summary["missing"]) == (len(plan.runs) - 1, 1, 0)
    record = records.load(results / "records" / f"{damaged_run.id}.json")
    assert record.status == "failed"
    assert reason in str(record.error)
    assert str(tmp_path) not in str(record.error)
    assert collect(suite, plan, work, results)["written"] == 0
    (work / damaged_run.id / "stage.json").write_text("{}")
    assert collect(suite, plan, work, results)["failed"] == 1
    assert fakes.run(plan, work).ok
    assert collect(suite, plan, work, results)["ok"] == len(plan.runs)


def test_a_damaged_upstream_stage_marks_every_run_that_needs_it_as_failed(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    stage_id = next(c.chain["pretrain"] for c in plan.runs if c.method["name"] == "kdep")
    (work / stage_id / "stage.json").write_text("[]")
    summary = collect(suite, plan, work, results)
    assert summary["failed"] == len([c for c in plan.runs if stage_id in c.chain.values()])
    assert summary["ok"] == len(plan.runs) - summary["failed"] > 0
    assert f"the outputs of stage {stage_id} cannot be used" in str(
        load_record(results, "kdep").error
    )


def test_a_prediction_image_outside_its_stage_is_refused(tmp_path):
    from kdep_bench.engine.collect import _copy_images

    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    record = load_record(results, "kdep")
    record = record.model_copy(update={"pictures": [f"pictures/{record.id}/../../secret"]})
    with pytest.raises(KdepError, match="outside the stage's directory"):
        _copy_images(record, work / record.id, results)


def test_the_teacher_s_reported_accuracy_is_in_the_record_and_not_in_a_spec():
    suite = load_suite("pocket")
    run = next(c for c in build_plan(suite).runs if c.teacher)
    recorded = _teacher_fields(run, {})
    assert recorded is not None
    assert recorded["top1"] == 0.751
    assert "reported" in recorded["top1_source"]
    assert not any("top1_source" in str(s.spec) for s in build_plan(suite).stages.values())


def test_a_live_teacher_s_checksum_is_in_the_record():
    suite = load_suite("pocket")
    plan = build_plan(suite)
    run = next(c for c in plan.runs if c.method["name"] == "kdep")
    live = {"outputs": {"teacher_source": "live", "teacher_checksum": "1" * 16}}
    recorded = _teacher_fields(run, {"pretrain": live})
    assert recorded is not None
    assert recorded["checksum"] == "1" * 16
    cached = {"outputs": {"teacher": {"checksum": "2" * 16}}}
    recorded = _teacher_fields(run, {"pretrain": {"outputs": {}}, "cache": cached})
    assert recorded is not None
    assert recorded["checksum"] == "2" * 16


def test_a_method_s_cost_includes_its_assistant_s_pre_training():
    def make_stage(kind: str, wall: float, spec: dict | None = None, **outputs) -> dict:
        return {
            "id": f"{kind}-{wall}",
            "kind": kind,
            "wall_s": wall,
            "spec": spec or {},
            "outputs": outputs,
            "peak_rss": 5,
            "environment": {"device": "cpu", "threads": 1},
        }

    all_data, tenth = {"teacher": {}}, {"teacher": {}, "share": 0.1}
    stages = {
        "pretrain": make_stage("pretrain", 10.0, extra_forwards=7, extra_parameters=3),
        "cache": make_stage("cache", 4.0, tenth, bytes=100, forwards=20),
        "teacher.pretrain": make_stage("pretrain", 30.0, images_seen=400, extra_forwards=3),
        "teacher.cache": make_stage("cache", 50.0, all_data, bytes=1000, forwards=200),
        "transfer": make_stage("transfer", 1.0),
    }
    run = TransferRun(
        method={},
        student={},
        teacher=None,
        task={},
        fraction=0.1,
        pretrain_seed=0,
        transfer_seed=0,
        chain={},
    )
    cost = _cost_fields(run, stages, True)
    assert cost["pretrain_s"] == 40.0
    # The cache of the data fraction, and a tenth of the cache of all data.
    assert cost["cache_s"] == 4.0 + 5.0
    assert cost["cache_bytes"] == 200
    assert cost["extra_forwards"] == 7 + (400 + 3) + 20 + 20
    assert cost["extra_parameters"] == 3
    assert cost["peak_gpu_bytes"] is None
    stages["pretrain"]["peak_gpu"], stages["transfer"]["peak_gpu"] = 8, 9
    assert _cost_fields(run, stages, True)["peak_gpu_bytes"] == 9
    del stages["pretrain"]["outputs"]["extra_forwards"]
    assert _cost_fields(run, stages, True)["extra_forwards"] is None


def test_the_learning_rate_in_a_record_is_that_of_the_method_s_training():
    other_rate = dict(base="kdep", optimizer=dict(lr=0.8))
    plan = build_plan(build(methods=["scratch", "supervised", other_rate]))
    specs = {s.spec["method"]["name"]: s.spec for s in plan.stages.values() if s.kind == "pretrain"}
    learning_rates = {
        method: _learning_rate({"spec": spec, "outputs": {"steps": 8}})
        for method, spec in specs.items()
    }
    common = build().budget.optimizer["lr"]
    assert (learning_rates["supervised"], learning_rates["kdep"]) == (common, 0.8)
    assert _learning_rate({"spec": specs["kdep"], "outputs": {"steps": 0}}) is None
    assert _learning_rate(None) is None


def test_a_record_has_only_the_data_notes_of_its_task(tmp_path):
    _, plan, _, _ = make_suite(tmp_path)  # its task reads the folder `classify`
    notes = {"classify": ["2 images are in two classes"], "detect": ["no box of 'dog'"]}
    stages = {"prepare": {"outputs": {"task_notes": notes}}}
    assert _data_notes(plan.runs[0], stages) == ["data: 2 images are in two classes"]
    assert _data_notes(plan.runs[0], {"prepare": {"outputs": {}}}) == []
    assert _data_notes(plan.runs[0], {}) == []


@pytest.mark.parametrize("chance", [None, 0.3])
def test_the_record_of_a_task_without_a_split_has_the_split_test(tmp_path, chance):
    """`Task` scores the test split by default; a table must not label that score as train."""
    suite, plan, work, _ = make_suite(tmp_path, methods=["scratch"])
    run = plan.runs[0]
    run.task.update(version=3)
    for key in ("split", "family", "direction"):
        run.task.pop(key)
    assert fakes.run(plan, work).ok
    add_outputs(work / run.id, chance=chance)
    record = make_record(suite, run, _Chains(plan, work, {}))
    assert record.status == "ok"
    task = record.task
    assert (task.split, task.family, task.direction, task.version) == ("test", "", "max", 3)
    assert task.chance == (run.task["chance"] if chance is None else chance)


def test_a_record_names_the_family_and_the_source_of_its_method(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    collect(suite, plan, work, results)
    for run in plan.runs:
        method = load_record(results, run.method["name"]).arm
        assert method.family == run.method.get("family", "")
        assert method.source == run.method.get("source", "")
        assert method.labels_used == bool(run.method.get("labels_used"))
    assert {load_record(results, m).arm.family for m in ("kdep", "scratch")} == {"feature", "none"}


def test_the_family_table_shows_the_teacher_outputs_that_its_methods_read(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, methods=["kdep", "logit_kd", "scratch"])
    assert fakes.run(plan, work).ok
    for run in plan.runs:
        add_outputs(work / run.chain["pretrain"], extra_parameters=0)
    collect(suite, plan, work, results)
    table = (results / "leaderboard.md").read_text().partition("## Method families")[2]
    row = next(line for line in table.splitlines() if "| feature |" in line)
    assert "| pooled (1) |" in row


def test_the_data_card_has_the_counts_of_the_prepared_data(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    assert not (results / "data_card.json").exists()  # `prepare` has reported no counts
    add_outputs(work / plan.runs[0].chain["prepare"], counts={"images": {"pool": 7}})
    assert "report" in collect(suite, plan, work, results)  # rebuilt, as the tables show the counts
    card = read_json(results / "data_card.json")
    assert (card["name"], card["counts"]) == (suite.data["name"], {"pool": 7})


def test_the_origin_of_linked_arrays_is_found_through_a_chain(tmp_path):
    """Earlier versions stored the id of the linked cache, which may itself have linked another."""
    _suite, plan, work, _ = make_suite(tmp_path, methods=["kdep"])
    run = plan.runs[0]
    assert fakes.run(plan, work).ok
    add_outputs(work / run.chain["cache"], reused="cache-middle")
    (work / "cache-middle").mkdir()
    write_json(work / "cache-middle/stage.json", {"outputs": {"reused": "cache-first"}})
    for origin in ("cache-first", "cache-middle"):
        cache = _Chains(plan, work, {}).stage(run.chain["cache"])
        assert cache is not None
        assert cache["outputs"]["reused"] == origin
        write_json(work / "cache-middle/stage.json", {"outputs": {}})  # it computed the arrays

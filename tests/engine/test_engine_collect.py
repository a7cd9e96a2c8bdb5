"""Records out of chains of real stage directories."""

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
    _cost,
    _data_notes,
    _epochs_asked,
    _rate,
    _teacher,
    collect,
    record_of,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json
from kdep_bench.results.records import record as records
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import TransferRun
from kdep_bench.suite.plan import build_plan


def world(tmp_path: Path, **change):
    suite = build(**change)
    return suite, build_plan(suite, fakes.PRETEND), tmp_path / "work", tmp_path / "results"


def of(results: Path, method: str, seed: int = 0) -> records.Record:
    all_records = [records.load(p) for p in (results / "records").glob("*.json")]
    return next(r for r in all_records if r.arm.method == method and r.seed.transfer == seed)


def tell(out: Path, **outputs: Any) -> None:
    """Gives a finished stage further outputs."""
    stage = read_json(out / "stage.json")
    del stage["sum"]
    state.write_stage(out, {**stage, "outputs": {**stage["outputs"], **outputs}})


def test_rounded_epochs_are_shown_with_the_requested_ones(tmp_path):
    """A table that shows the epochs done says nothing of a budget that asked for others."""
    suite, plan, work, results = world(tmp_path)  # 2 steps of 8 over 10 images: 1.6 epochs of 1
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    assert of(results, "kdep").budget.epochs_asked == 1.0
    text = (results / "leaderboard.md").read_text()
    assert "was pre-trained for 2 epochs instead of the 1 of its budget" in text
    budget = {"epochs": 1.6, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}}
    suite, plan, work, results = world(tmp_path / "exact", budget=budget)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    assert of(results, "kdep").budget.epochs_asked is None
    record = next((results / "records").glob("*kdep*")).read_text()
    assert "epochs_asked" not in record  # published records stay as they are
    assert "of its budget" not in (results / "leaderboard.md").read_text()


def test_epochs_asked_of_the_pool_are_those_of_the_share():
    budget = dict(epochs=1.0, batch=8, epochs_over="pool")
    outputs = dict(steps=12, images=10, image_list={"of": 100})
    stage = dict(outputs=outputs, spec=dict(budget=budget))
    assert _epochs_asked(stage) is None  # 12 of 12.5 batches
    assert _epochs_asked({**stage, "outputs": {**outputs, "steps": 6}}) == 10.0
    assert _epochs_asked(None) is None
    assert _epochs_asked(dict(outputs=dict(steps=0), spec={})) is None


def test_a_record_has_the_figures_of_all_its_stages(tmp_path):
    suite, plan, work, results = world(tmp_path, methods=["kdep", "supervised", "scratch"])
    assert fakes.run(plan, work).ok
    summary = collect(suite, plan, work, results)
    assert {k: summary[k] for k in ("ok", "failed", "missing", "written")} == {
        "ok": 6,
        "failed": 0,
        "missing": 0,
        "written": 6,
    }
    kdep = of(results, "kdep", 1)
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
    # As after a resume: the last try was short, and the stages say what all of their work took.
    assert kdep.cost.cache_s == 5000
    assert kdep.cost.pretrain_s == 7000
    assert set(kdep.stages) == {
        "prepare", "views", "cache", "align", "pretrain", "export", "transfer"
    }  # fmt: skip
    assert len(kdep.curves["loss"]) == CURVE_POINTS
    assert kdep.curves["loss"][-1][0] == 999
    assert (results / kdep.pictures[0]).read_bytes() == b"png"
    assert of(results, "supervised").teacher is None
    assert of(results, "supervised").arm.label_policy == "labels"
    assert of(results, "scratch").arm.label_policy == "none"
    assert (results / "leaderboard.md").exists()


def test_finished_stages_of_earlier_versions_fill_the_record_as_before(tmp_path):
    """Their stage.json has the outputs' former names; nothing runs again for a name."""
    suite, plan, work, results = world(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    want = of(results, "kdep")
    assert want.align is not None
    assert (want.align.explained_variance_ratio, want.align.std_ratio_after_align) == (0.9, 8.0)

    def former_names(record):
        out = record["outputs"]
        out["energy_kept"] = out.pop("explained_variance_ratio")
        out["std_ratio_after_svd"] = out.pop("std_ratio_after_align")

    aligned = [s for s in plan.stages.values() if s.kind == "align"]
    for stage in aligned:
        bend(state.folder(work, stage), former_names)
    assert aligned
    for path in (results / "records").glob("*.json"):
        path.unlink()
    collect(suite, plan, work, results)
    assert of(results, "kdep") == want


def test_nothing_new_writes_nothing(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*") if p.is_file()}
    summary = collect(suite, plan, work, results)
    assert summary["written"] == 0
    assert "report" not in summary
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*") if p.is_file()} == before


def test_the_cache_is_charged_by_share(tmp_path):
    suite, plan, work, results = world(tmp_path, shares=[1.0, 0.1], methods=["kdep"])
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    all_records = [records.load(p) for p in (results / "records").glob("*.json")]
    assert {r.cost.cache_bytes for r in all_records if r.data.share == 0.1} == {100}
    assert {r.cost.cache_bytes for r in all_records if r.data.share == 1.0} == {1000}


def test_an_untimed_suite_keeps_wall_times_out_of_its_records(tmp_path):
    suite, plan, work, results = world(tmp_path, methods=["kdep"], runtime={"timed": False})
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    cost = of(results, "kdep").cost
    seconds = (cost.pretrain_s, cost.cache_s, cost.align_s, cost.transfer_s, cost.images_per_s)
    assert seconds == (None,) * 5
    assert cost.cache_bytes == 1000
    assert set(plan.stages) == set(world(tmp_path, methods=["kdep"])[1].stages)


def test_missing_and_failed_runs_have_records(tmp_path):
    suite, plan, work, results = world(tmp_path)
    summary = collect(suite, plan, work, results)
    assert summary["missing"] == 4
    work.mkdir(exist_ok=True)
    (work / "break-transfers").touch()
    outcome = fakes.run(plan, work)
    summary = collect(suite, plan, work, results, outcome.failed)
    assert summary["failed"] == 4
    assert str(of(results, "kdep").error).startswith(
        "a broken transfer; expected a whole one. Fix: "
    )
    (work / "break-transfers").unlink()
    assert fakes.run(plan, work).ok
    assert collect(suite, plan, work, results)["ok"] == 4


def test_an_upstream_failure_is_named(tmp_path):
    suite, plan, work, results = world(tmp_path, methods=["kdep"])
    cache = next(i for i in plan.stages if i.startswith("cache-"))
    summary = collect(suite, plan, work, results, {cache: "no teacher."})
    assert summary["failed"] == 2
    assert of(results, "kdep").error == "cache failed: no teacher."


def test_pruning_a_work_dir_removes_no_result(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    summary = collect(suite, plan, tmp_path / "elsewhere", results)
    assert summary["ok"] == 4
    assert summary["written"] == 0


def test_records_of_runs_no_longer_planned_are_set_aside(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    for _ in range(2):  # a cell may be set aside again
        suite, plan, work, results = world(tmp_path)
        collect(suite, plan, work, results)
        for run in plan.runs:
            picture = results / "pictures" / run.id / "worst.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(b"png")
        suite, plan, work, results = world(tmp_path, methods=["scratch"])
        collect(suite, plan, work, results)
        for folder in (results, results / "superseded"):
            pictures = {path.name for path in (folder / "pictures").iterdir()}
            records = folder if folder.name == "superseded" else folder / "records"
            assert {path.stem for path in records.glob("*.json")} == pictures
            assert len(pictures) == 2


def test_a_truncated_record_is_rewritten(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    path = next((results / "records").glob("*.json"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert collect(suite, plan, work, results)["written"] == 1
    assert path.read_bytes() == whole


def test_a_damaged_record_that_is_moved_away_as_advised_is_written_again(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    path = next((results / "records").glob("*.json"))
    complete = path.read_bytes()
    path.write_bytes(complete[:100])
    with pytest.raises(KdepError, match="move the file to another folder and run the suite with"):
        records.load(path)
    path.rename(tmp_path / path.name)
    assert collect(suite, plan, work, results)["written"] == 1
    assert path.read_bytes() == complete


def bend(path: Path, change) -> None:
    """Changes a stage.json and gives it the right sum again, as a foreign tool could."""
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
def test_one_bad_stage_json_fails_only_its_run(tmp_path, change, reason):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    bad = next(c for c in plan.runs if c.method["name"] == "kdep")
    bend(work / bad.id, change)
    summary = collect(suite, plan, work, results)
    assert (summary["ok"], summary["failed"], summary["missing"]) == (len(plan.runs) - 1, 1, 0)
    record = records.load(results / "records" / f"{bad.id}.json")
    assert record.status == "failed"
    assert reason in str(record.error)
    assert str(tmp_path) not in str(record.error)
    assert collect(suite, plan, work, results)["written"] == 0
    (work / bad.id / "stage.json").write_text("{}")
    assert collect(suite, plan, work, results)["failed"] == 1
    assert fakes.run(plan, work).ok
    assert collect(suite, plan, work, results)["ok"] == len(plan.runs)


def test_a_damaged_upstream_stage_does_not_leave_a_record_with_gaps(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    stage_id = next(c.chain["pretrain"] for c in plan.runs if c.method["name"] == "kdep")
    (work / stage_id / "stage.json").write_text("[]")
    summary = collect(suite, plan, work, results)
    assert summary["failed"] == len([c for c in plan.runs if stage_id in c.chain.values()])
    assert summary["ok"] == len(plan.runs) - summary["failed"] > 0
    assert f"the outputs of stage {stage_id} cannot be used" in str(of(results, "kdep").error)


def test_a_prediction_image_outside_its_stage_is_refused(tmp_path):
    from kdep_bench.engine.collect import _copy_images

    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    bad = of(results, "kdep")
    bad = bad.model_copy(update={"pictures": [f"pictures/{bad.id}/../../secret"]})
    with pytest.raises(KdepError, match="outside the stage's directory"):
        _copy_images(bad, work / bad.id, results)


def test_the_teachers_reported_accuracy_goes_into_the_record_and_into_no_stage():
    suite = load_suite("pocket")
    run = next(c for c in build_plan(suite).runs if c.teacher)
    teacher_output = _teacher(run, {})
    assert teacher_output is not None
    assert teacher_output["top1"] == 0.751
    assert "reported" in teacher_output["top1_source"]
    assert not any("top1_source" in str(s.spec) for s in build_plan(suite).stages.values())


def test_a_live_teachers_checksum_goes_into_the_record():
    suite = load_suite("pocket")
    plan = build_plan(suite)
    run = next(c for c in plan.runs if c.method["name"] == "kdep")
    live = {"outputs": {"teacher_source": "live", "teacher_checksum": "1" * 16}}
    recorded = _teacher(run, {"pretrain": live})
    assert recorded is not None
    assert recorded["checksum"] == "1" * 16
    cached = {"outputs": {"teacher": {"checksum": "2" * 16}}}
    recorded = _teacher(run, {"pretrain": {"outputs": {}}, "cache": cached})
    assert recorded is not None
    assert recorded["checksum"] == "2" * 16


def test_a_method_s_cost_includes_its_assistant_s_pre_training():
    def stage(kind: str, wall: float, spec: dict | None = None, **outputs) -> dict:
        return {
            "kind": kind,
            "wall_s": wall,
            "spec": spec or {},
            "outputs": outputs,
            "peak_rss": 5,
            "environment": {"device": "cpu", "threads": 1},
        }

    whole, part = {"teacher": {}}, {"teacher": {}, "share": 0.1}
    found = {
        "pretrain": stage("pretrain", 10.0, extra_forwards=7, extra_parameters=3),
        "cache": stage("cache", 4.0, part, bytes=100, forwards=20),
        "teacher.pretrain": stage("pretrain", 30.0),
        "teacher.cache": stage("cache", 50.0, whole, bytes=1000, forwards=200),
        "transfer": stage("transfer", 1.0),
    }
    run = TransferRun({}, {}, None, {}, 0.1, 0, 0, {})
    cost = _cost(run, found, True)
    assert cost["pretrain_s"] == 40.0
    assert cost["cache_s"] == 4.0 + 5.0  # all of the share's cache, a tenth of the whole one
    assert cost["cache_bytes"] == 200
    assert cost["extra_forwards"] == 7 + 20 + 20
    assert cost["extra_parameters"] == 3
    assert cost["peak_gpu_bytes"] is None
    found["pretrain"]["peak_gpu"], found["transfer"]["peak_gpu"] = 8, 9
    assert _cost(run, found, True)["peak_gpu_bytes"] == 9
    del found["pretrain"]["outputs"]["extra_forwards"]
    assert _cost(run, found, True)["extra_forwards"] is None


def test_the_learning_rate_in_a_record_is_that_of_the_method_s_training():
    told = dict(base="kdep", optimizer=dict(lr=0.8))
    plan = build_plan(build(methods=["scratch", "supervised", told]))
    specs = {s.spec["method"]["name"]: s.spec for s in plan.stages.values() if s.kind == "pretrain"}
    rates = {m: _rate({"spec": spec, "outputs": {"steps": 8}}) for m, spec in specs.items()}
    common = build().budget.optimizer["lr"]
    assert (rates["supervised"], rates["kdep"]) == (common, 0.8)
    assert _rate({"spec": specs["kdep"], "outputs": {"steps": 0}}) is None
    assert _rate(None) is None


def test_a_record_notes_the_data_of_its_own_task_alone(tmp_path):
    _, plan, _, _ = world(tmp_path)  # a probe, which reads `classify`
    notes = {"classify": ["2 pictures lie in two classes"], "detect": ["no box of 'dog'"]}
    found = {"prepare": {"outputs": {"task_notes": notes}}}
    assert _data_notes(plan.runs[0], found) == ["data: 2 pictures lie in two classes"]
    assert _data_notes(plan.runs[0], {"prepare": {"outputs": {}}}) == []
    assert _data_notes(plan.runs[0], {}) == []


@pytest.mark.parametrize("chance", [None, 0.3])
def test_a_record_of_a_task_that_states_no_split_says_test(tmp_path, chance):
    """As `Task` scores it; a table never calls a score of test one of train."""
    suite, plan, work, _ = world(tmp_path, methods=["scratch"])
    run = plan.runs[0]
    run.task.update(version=3)
    for key in ("split", "family", "direction"):
        run.task.pop(key)
    assert fakes.run(plan, work).ok
    tell(work / run.id, chance=chance)
    record = record_of(suite, run, _Chains(plan, work, {}))
    assert record.status == "ok"
    task = record.task
    assert (task.split, task.family, task.direction, task.version) == ("test", "", "max", 3)
    assert task.chance == (run.task["chance"] if chance is None else chance)


def test_a_record_names_the_family_and_the_source_of_its_method(tmp_path):
    suite, plan, work, results = world(tmp_path)
    collect(suite, plan, work, results)
    for run in plan.runs:
        arm = of(results, run.method["name"]).arm
        assert arm.family == run.method.get("family", "")
        assert arm.source == run.method.get("source", "")
        assert arm.labels_used == bool(run.method.get("labels_used"))
    assert {of(results, m).arm.family for m in ("kdep", "scratch")} == {"feature", "none"}


def test_the_tables_say_what_the_methods_of_a_family_read(tmp_path):
    suite, plan, work, results = world(tmp_path, methods=["kdep", "scratch"])
    assert fakes.run(plan, work).ok
    for run in plan.runs:
        tell(work / run.chain["pretrain"], extra_parameters=0)
    collect(suite, plan, work, results)
    table = (results / "leaderboard.md").read_text().partition("## Method families")[2]
    row = next(line for line in table.splitlines() if "| feature |" in line)
    assert "| pooled (1) |" in row


def test_the_data_card_has_the_counts_of_the_data_that_were_prepared(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    assert not (results / "data_card.json").exists()  # a `prepare` that counts nothing
    tell(work / plan.runs[0].chain["prepare"], counts={"images": {"pool": 7}})
    assert "report" in collect(suite, plan, work, results)  # the tables show it
    card = read_json(results / "data_card.json")
    assert (card["name"], card["counts"]) == (suite.data["name"], {"pool": 7})

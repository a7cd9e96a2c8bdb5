"""tools/report.py validate finds every fault that a test adds to records, and none in the published
folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.results import build
from kdep_bench.results.records import store
from kdep_bench.results.records.submission import join
from kdep_bench.results.records.validate import validate

REPO = Path(__file__).resolve().parents[2]
POCKET = REPO / "results" / "pocket"
TOOL = REPO / "tools" / "report.py"
KDEP, SUPERVISED = "pocket_seg.resnet18_w32.kdep.s0-0", "pocket_seg.resnet18_w32.supervised.s0-0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the published records of pocket."""
    target = tmp_path / "theirs"
    shutil.copytree(POCKET / "records", target / "records")
    return target


def file_of(folder: Path, name: str) -> Path:
    """The file of a record."""
    (path,) = (folder / "records").glob(f"transfer-{name}-*.json")
    return path


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Changes a record in place; returns its file as the faults name it."""
    path = file_of(folder, name)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return f"records/{path.name}"


def set_field(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets a field of a record."""

    def change(record: dict[str, Any]) -> None:
        part = record
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (REPO / "results").iterdir() if (p / "records").is_dir())
)
def test_no_published_record_has_a_fault(name):
    report = validate(REPO / "results" / name, REPO / "results" / name)
    assert report.records
    assert report.faults == []


FAULTS_OF_ONE = {
    "partly loaded weights": (set_field("gate", "coverage", value=0.97), "97 % of the backbone's"),
    "a tensor that was not loaded": (
        set_field("gate", "missing", value=["conv1.weight"]),
        "1 missing",
    ),
    "no load gate": (set_field("gate", value=None), "no load gate"),
    "a score in percent": (set_field("value", value=15.2), "of at most 1"),
    "a metric in percent": (set_field("metrics", "aAcc", value=83.4), "fractions"),
    "a score that its metric contradicts": (
        set_field("value", value=0.9),
        "but mIoU in its metrics is",
    ),
    "milliseconds": (set_field("cost", "pretrain_s", value=940_761.0), "times are in seconds"),
    "nanoseconds": (set_field("cost", "transfer_s", value=7.8e10), "times are in seconds"),
    "labels of a label-free method": (
        set_field("arm", "labels_used", value=True),
        "labels were used",
    ),
    "a time in the future": (
        set_field("created", value="2999-01-01T00:00:00+00:00"),
        "in the future",
    ),
    "a config hash that is not hexadecimal": (
        set_field("config_hash", value="mine"),
        "is not a hash",
    ),
    "a stage without a hash": (set_field("stages", "export", value="export-mine"), "12 digits"),
    "an unknown field": (set_field("trust", value="me"), "trust"),
    "NaN as a metric": (set_field("metrics", "aAcc", value=float("nan")), "NaN"),
    "more images at the same epochs": (
        set_field("budget", "images_seen", value=1_024_000),
        "are not 16 epochs of 32000 images",
    ),
}


@pytest.mark.parametrize("fault_name", sorted(FAULTS_OF_ONE))
def test_a_fault_of_one_record_is_named_with_its_file(folder, fault_name):
    change, message = FAULTS_OF_ONE[fault_name]
    file = edit(folder, KDEP, change)
    faults = validate(folder).faults
    assert faults
    assert all(file in fault for fault in faults)
    assert any(message in fault for fault in faults), faults


FAULTS_OF_SEVERAL = {
    "a method with twice the budget": (
        lambda r: r["budget"].update(epochs=32.0, images_seen=1_024_000, steps=16_000),
        "kdep was pre-trained with 1024000 images in 16000 steps, other methods on the same data "
        "with 512000",
    ),
    "another teacher": (
        set_field("teacher", "checksum", value="0" * 16),
        "two checksums of the teacher",
    ),
    "another student": (
        set_field("student", "params", value=1),
        "numbers of parameters of the student",
    ),
    "other data": (
        set_field("data", "fingerprint", value="1" * 16),
        "fingerprints of the data pocket",
    ),
    "another version of the task": (set_field("task", "version", value=2), "definitions"),
    "another split": (set_field("task", "split", value="val"), "definitions"),
    "another recipe for one seed": (
        set_field("config_hash", value="0" * 12),
        "config hashes of kdep",
    ),
    "another version of a scoring package": (
        set_field("packages", "mmsegmentation", value="9"),
        "versions of mmsegmentation",
    ),
}


@pytest.mark.parametrize("fault_name", sorted(FAULTS_OF_SEVERAL))
def test_records_of_different_experiments_are_named(folder, fault_name):
    change, message = FAULTS_OF_SEVERAL[fault_name]
    files = [
        edit(folder, f"pocket_seg.resnet18_w32.kdep.s0-{seed}", change)
        for seed in ((0, 1, 2) if "twice" in fault_name else (0,))
    ]
    if "twice" in fault_name:  # change all runs of the method, so that they agree with each other
        for task in ("det", "finetune", "photos", "probe"):
            for seed in range(3):
                edit(folder, f"pocket_{task}.resnet18_w32.kdep.s0-{seed}", change)
    faults = validate(folder).faults
    assert any(message in fault and "records/" in fault for fault in faults), (files, faults)
    if "twice" in fault_name:
        assert validate(folder, other_budgets=True).faults == []


def test_copies_of_a_run_under_another_seed_or_id_are_detected(folder):
    path = file_of(folder, KDEP)
    value = json.loads(path.read_text())
    copy = folder / "records" / path.name.replace("s0-0-7661a89f5814", "s0-7-000000000000")
    value["id"] = value["stages"]["transfer"] = copy.stem
    value["seed"]["transfer"] = 7
    copy.write_text(json.dumps(value))
    faults = validate(folder).faults
    assert faults == [f"records/{copy.name}: its loss curve is equal to that of "
                      f"records/{path.name}, so it is a copy"]  # fmt: skip
    value["seed"]["transfer"] = 0
    value["curves"] = {}
    copy.write_text(json.dumps(value))
    (fault,) = validate(folder).faults
    assert fault.startswith(f"records/{copy.name}: the same method, task and seeds as")


def test_damaged_and_wrongly_named_files_are_faults(folder):
    (folder / "records" / "transfer-x.json").write_text("{")
    shutil.copy(file_of(folder, KDEP), folder / "records" / "transfer-y.json")
    faults = validate(folder).faults
    assert len(faults) == 2
    assert all(f"records/transfer-{k}.json" in f for k, f in zip("xy", faults, strict=True))


def test_records_from_another_processor_have_a_note_and_no_fault(folder):
    for path in (folder / "records").glob("*.json"):
        value = json.loads(path.read_text())
        value["cost"]["device"] = "cpu: AMD EPYC"
        path.write_text(json.dumps(value))
    report = validate(folder, POCKET)
    assert report.faults == []
    assert any("the device is cpu: AMD EPYC here" in note for note in report.notes)


FAULTS_AGAINST_TABLE = {
    "another suite": (set_field("suite", value="mine"), "its suite is mine"),
    "a seed that was selected": (
        set_field("seed", "transfer", value=41),
        "seeds must not be selected",
    ),
    "a task that is not in the table": (set_field("task", "name", value="x"), "has no task x"),
}


@pytest.mark.parametrize("fault_name", sorted(FAULTS_AGAINST_TABLE))
def test_records_that_do_not_fit_the_table_are_named(folder, fault_name):
    change, message = FAULTS_AGAINST_TABLE[fault_name]
    file = edit(folder, KDEP, change)
    assert validate(folder).faults == []
    faults = validate(folder, POCKET).faults
    assert any(message in fault and fault.startswith(file) for fault in faults), faults


def test_all_records_with_other_data_or_budgets_than_the_table_are_refused(folder):
    for path in (folder / "records").glob("*.json"):
        value = json.loads(path.read_text())
        value["data"]["fingerprint"] = "1" * 16
        value["id"] = value["stages"]["transfer"] = f"{value['id'][:-12]}{'0' * 12}"
        value["config_hash"] = "0" * 12
        if value["budget"]["steps"]:
            value["budget"].update(epochs=32.0, images_seen=1_024_000, steps=16_000)
        path.unlink()
        (path.parent / f"{value['id']}.json").write_text(json.dumps(value))
    assert validate(folder).faults == []  # consistent in itself
    text = "\n".join(validate(folder, POCKET).faults)
    assert "data 11111111, in the table" in text
    assert "pre-trained on 1024000 images in 16000 steps, in the table on 512000 in 8000" in text


def test_a_folder_without_records_is_an_error(tmp_path):
    with pytest.raises(KdepError, match="contains no records"):
        validate(tmp_path)
    with pytest.raises(KdepError, match="does not exist"):
        validate(tmp_path / "nowhere")


# --- joining ----------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A copy of the published folder of pocket."""
    target = tmp_path / "pocket"
    shutil.copytree(POCKET, target)
    return target


def own_lines(table: Path) -> list[str]:
    """The lines of the leaderboard with the suite's own scores, differences and seed variation."""
    lines = (table / "leaderboard.md").read_text().splitlines()
    scores = [x for x in lines if "submitted" not in x and "±" in x]
    # Sorted below, because with many pairs they are in two tables.
    differences = [x for x in lines if "| kdep - " in x]
    variation = lines[lines.index("## Variation between seeds") :]
    variation = [x for x in variation[: variation.index("## Environment")] if x.startswith("|")]
    return [x.replace("**", "") for x in scores] + sorted(differences) + variation


def test_a_submission_is_marked_and_changes_no_row_of_the_suite(folder, table):
    build(table)
    before, claims = own_lines(table), build(table)["claims"]
    join(validate(folder, table), table, "lab", folder)
    done = build(table)
    text = (table / "leaderboard.md").read_text()
    assert done["records"] == 45 + 45  # of the suite and of the submission
    assert done["claims"] == claims
    assert own_lines(table) == before
    assert "| kdep (submitted by lab) |" in text
    assert "45 records were submitted by lab" in text
    assert "kdep (submitted by lab)" in (table / "leaderboard.tex").read_text()
    assert "--only 'kdep (submitted" not in text  # no command of this suite runs it


def test_a_submission_changed_after_it_joined_is_not_in_the_table(folder, table):
    joined = join(validate(folder, table), table, "lab", folder)
    path = next((joined / "records").glob("*kdep.s0-0*.json"))
    path.write_text(path.read_text().replace('"coverage": 1.0', '"coverage": 0.5'))
    (joined / "records" / "extra.json").write_text(path.read_text())
    damaged = store.read(table).damaged
    assert [d.file for d in damaged] == [
        f"submissions/lab/records/{n}" for n in ("extra.json", path.name)
    ]
    assert all("was added or changed after its validation" in d.sentence for d in damaged)
    (joined / "submission.json").unlink()
    (only,) = store.read(table).damaged
    assert only.file == "submissions/lab/submission.json"
    assert len(store.read_own(table).runs) == 45


def test_faulty_records_and_a_used_name_are_not_joined(folder, table):
    report = validate(folder, table)
    join(report, table, "lab", folder)
    with pytest.raises(KdepError, match="exists already"):
        join(report, table, "lab", folder)
    with pytest.raises(KdepError, match="cannot be used as a file name"):
        join(report, table, "../lab", folder)
    edit(folder, KDEP, set_field("gate", value=None))
    with pytest.raises(KdepError, match="1 faults"):
        join(validate(folder, table), table, "lab2", folder)
    assert store.submitters(table) == ["lab"]


def test_the_command_prints_each_fault_and_exits_with_1(folder, table):
    def run(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True
        )

    assert run("validate", folder, "--join", table, "--name", "lab").returncode == 0
    assert "submitted by lab" in (table / "index.html").read_text()
    file = edit(folder, SUPERVISED, set_field("gate", value=None))
    done = run("validate", folder, "--against", table)
    assert done.returncode == 1
    assert f"fault: {file}: it has no load gate" in done.stderr
    assert "45 records read, 1 faults" in done.stderr
    assert run("validate", folder, "--join", table).returncode == 2
    assert run(table, "--name", "lab").returncode == 2

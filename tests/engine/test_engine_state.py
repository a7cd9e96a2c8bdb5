"""The status of stages from their directories: done, damaged, changed, and why they would run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import engine_fakes as fakes
import pytest

from kdep_bench.engine import state
from kdep_bench.errors import KdepError, how_to_rebuild
from kdep_bench.files import read_json


def status_text(plan, work, name: str, **options) -> str:
    """The status text of the stage of this name."""
    return state.statuses(plan, work, **options)[fakes.id_of(plan, name)].why


def test_the_status_gives_the_reason_why_a_stage_would_run(tmp_path):
    plan = fakes.diamond()
    assert status_text(plan, tmp_path, "a") == "never run"
    assert status_text(plan, tmp_path, "b") == "never run"
    fakes.run(plan, tmp_path)
    assert status_text(plan, tmp_path, "a") == "done"
    other = fakes.diamond(a={"value": 2})
    assert status_text(other, tmp_path, "a") == "spec changed: value 1 -> 2"
    assert status_text(other, tmp_path, "b") == f"upstream {fakes.id_of(other, 'a')} will run"
    (tmp_path / fakes.id_of(plan, "b") / "value.txt").write_text("long")
    assert "4 bytes instead of 2" in status_text(plan, tmp_path, "b")
    (tmp_path / fakes.id_of(plan, "b") / "value.txt").unlink()
    assert "value.txt is missing" in status_text(plan, tmp_path, "b")


def test_the_status_reports_another_stage_version_and_changed_source_code(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    path = tmp_path / fakes.id_of(plan, "a") / "stage.json"
    record = read_json(path)
    state.write_stage(path.parent, {**record, "code": "0123456789abcdef"})
    assert "different version of the code" in status_text(plan, tmp_path, "a")
    assert state.statuses(plan, tmp_path)[fakes.id_of(plan, "a")].done
    state.write_stage(path.parent, {**record, "version": 0})
    assert status_text(plan, tmp_path, "a") == "stage version 0 -> 1"


def test_checksums_are_checked_on_request(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    (tmp_path / fakes.id_of(plan, "c") / "value.txt").write_text("999")  # same size as "101"
    assert status_text(plan, tmp_path, "c") == "done"
    assert "its checksum differs" in status_text(plan, tmp_path, "c", verify=True)


def test_a_missing_stage_that_no_unfinished_stage_needs_is_not_rerun(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    shutil.rmtree(tmp_path / fakes.id_of(plan, "a"))
    status = state.statuses(plan, tmp_path)[fakes.id_of(plan, "a")]
    assert not status.run
    assert "not needed" in status.why
    assert fakes.run(plan, tmp_path).ran == []


def test_a_stage_json_that_is_truncated_or_lacks_a_key_counts_as_not_done(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    stage = plan.stages[fakes.id_of(plan, "d")]
    path = tmp_path / stage.id / "stage.json"
    complete = path.read_bytes()
    for length in range(0, len(complete) - 1, 37):
        path.write_bytes(complete[:length])
        assert state.finished(stage, tmp_path)[0] is None
    for key in json.loads(complete):
        kept = {k: v for k, v in json.loads(complete).items() if k not in (key, "sum")}
        state.write_stage(path.parent, kept)  # with a correct checksum
        if key in ("schema", "id", "version", "files", "outputs", "spec", "needs", "environment"):
            assert state.finished(stage, tmp_path)[0] is None
    path.write_bytes(complete)
    assert state.finished(stage, tmp_path)[0] is not None


def test_many_files_are_stored_as_one_checksum_and_still_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LISTED_FILES", 5)
    out = tmp_path / "stage"
    for k in range(12):
        (out / "tree").mkdir(parents=True, exist_ok=True)
        (out / "tree" / f"{k:02d}").write_text("x" * k)
    (out / "manifest.json").write_text("{}")
    files, rest = state.list_files(out)
    assert len(files) == 5
    assert "manifest.json" in files
    assert rest is not None
    assert rest["count"] == 12 + 1 - 5
    record = {"files": files, "rest": rest}
    assert state._first_mismatch(out, record, compare_checksums=True) is None
    (out / "tree" / "11").unlink()
    assert "among the other" in (state._first_mismatch(out, record, compare_checksums=True) or "")


def test_changes_of_a_spec_are_described_by_key_with_old_and_new_value():
    old, new = {"a": {"b": 1, "c": [1]}, "gone": 1}, {"a": {"b": 2, "c": [1]}, "new": 1}
    assert state.differences(old, new) == ["a.b 1 -> 2", "gone dropped", "new added"]
    assert state.differences({"a": {"b": 1}}, {"a": 3}) == ['a {"b": 1} -> 3']
    assert state.differences({"a": 3}, {"a": {"b": 1}}) == ['a 3 -> {"b": 1}']


def test_only_requested_stages_are_checked(tmp_path):
    """Otherwise a forced run would count work of stages that were not requested."""
    plan = fakes.diamond()
    expected = {fakes.id_of(plan, "a"), fakes.id_of(plan, "b")}
    statuses = state.statuses(plan, tmp_path, expected)
    assert set(statuses) == expected
    assert all(s.run for s in statuses.values())


def test_an_empty_file_replaced_by_a_pipe_is_detected(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    out = tmp_path / fakes.id_of(plan, "a")
    (out / "empty.txt").touch()
    record = read_json(out / "stage.json")
    record.pop("sum")
    record["files"] = state.list_files(out)[0]
    state.write_stage(out, record)
    assert status_text(plan, tmp_path, "a", verify=True) == "done"
    (out / "empty.txt").unlink()
    os.mkfifo(out / "empty.txt")
    assert "empty.txt" in status_text(plan, tmp_path, "a", verify=True)


def test_the_advised_fix_for_a_damaged_stage_works(tmp_path):
    work, plan = tmp_path / "work", fakes.diamond()
    fakes.run(plan, work)
    damaged, reader = work / fakes.id_of(plan, "a"), fakes.id_of(plan, "b")
    (damaged / "value.txt").write_text("9")
    assert f"move the folder {damaged} out of the work dir" in how_to_rebuild(damaged)
    damaged.rename(tmp_path / "kept")
    assert damaged.name in fakes.run(plan, work, force=lambda stage: stage.id == reader).ran
    assert (damaged / "value.txt").read_text() == "1"


def test_a_stage_json_with_a_flipped_bit_is_never_used(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    stage = plan.stages[fakes.id_of(plan, "d")]
    path = tmp_path / stage.id / "stage.json"
    complete = path.read_bytes()
    for position in range(0, len(complete), 7):
        changed = bytearray(complete)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        record, fault = state.finished(stage, tmp_path)
        assert record is None
        assert fault


def test_a_stage_json_without_its_checksum_is_ignored_and_the_stage_reruns(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    path = tmp_path / fakes.id_of(plan, "a") / "stage.json"
    path.write_text(json.dumps({k: v for k, v in read_json(path).items() if k != "sum"}))
    assert "its checksum is wrong or missing" in status_text(plan, tmp_path, "a")
    assert fakes.id_of(plan, "a") in fakes.run(plan, tmp_path).ran
    assert status_text(plan, tmp_path, "a") == "done"


@pytest.mark.parametrize(
    "change",
    [
        {"version": True},
        {"version": "1"},
        {"version": 1.0},
        {"wall_s": "2"},
        {"wall_s": -1},
        {"wall_s": True},
        {"peak_rss": None},
        {"outputs": []},
        {"files": {"a": [True, "0"]}},
        {"files": {"a": 3}},
        {"files": {"a": [1]}},
        {"finished": 5},
    ],
)
def test_a_stage_json_with_a_value_of_another_type_is_not_used(tmp_path, change):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    stage = plan.stages[fakes.id_of(plan, "d")]
    record = state.read_stage(tmp_path / stage.id)
    assert record is not None
    state.write_stage(tmp_path / stage.id, record | change)
    record, fault = state.finished(stage, tmp_path)
    assert record is None
    assert "is damaged" in (fault or "")


def test_small_files_of_an_input_are_hashed_every_time_and_large_ones_after_a_change(
    tmp_path, monkeypatch
):
    """Otherwise a flipped bit in a file beyond the first 64 MiB would not be detected."""
    monkeypatch.setattr(state, "VERIFY_BYTES", 10)
    plan = fakes.diamond()
    assert fakes.run(plan, tmp_path).ok
    stage_id = fakes.id_of(plan, "a")
    out = tmp_path / stage_id
    record = state.read_stage(out)
    assert record is not None
    (out / "large.bin").write_bytes(b"x" * 1000)
    files, rest = state.list_files(out)
    state.write_stage(out, {**record, "files": files, "rest": rest})
    hashed: list[str] = []
    real_hash = state.file_hash
    monkeypatch.setattr(state, "file_hash", lambda p: hashed.append(Path(p).name) or real_hash(p))
    for expected in (["large.bin", "value.txt"], ["value.txt"]):
        assert state.verify_input(tmp_path, stage_id) == ""
        assert sorted(hashed) == expected
        hashed.clear()
    times = os.stat(out / "large.bin")
    (out / "large.bin").write_bytes(b"x" * 999 + b"y")
    os.utime(out / "large.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(KdepError, match=r"large\.bin has changed"):
        state.verify_input(tmp_path, stage_id)
    assert not (out / state.STAGE).exists()


def test_unchecked_parts_of_an_input_are_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LISTED_FILES", 1)
    plan = fakes.diamond()
    assert fakes.run(plan, tmp_path).ok
    stage_id = fakes.id_of(plan, "a")
    out = tmp_path / stage_id
    record = state.read_stage(out)
    assert record is not None
    (out / "z.bin").write_bytes(b"x" * 7)
    files, rest = state.list_files(out)
    state.write_stage(out, {**record, "files": files, "rest": rest})
    assert "1 files (7 bytes)" in state.verify_input(tmp_path, stage_id)

"""Links, FIFOs and devices planted in a work dir or results folder: refused, and never followed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import engine_fakes as fakes
import pytest
from test_suite_config import build

from kdep_bench.engine import lock, stage_process, state, work_dir, worker
from kdep_bench.engine.collect import collect
from kdep_bench.errors import KdepError
from kdep_bench.paths import ROOT as REPO
from kdep_bench.results.records import store
from kdep_bench.results.report import report
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite


def planned() -> tuple[Suite, Plan]:
    suite = build(methods=["kdep", "scratch"])
    return suite, build_plan(suite, fakes.PRETEND)


def run_all(plan: Plan, work: Path) -> None:
    assert fakes.run(plan, work).ok


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A user's folder outside the work dir, with one file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_text("my photo")
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def untouched(photos: Path) -> bool:
    return [p.name for p in photos.iterdir()] == ["a.jpg"] and (
        photos / "a.jpg"
    ).read_text() == "my photo"


@pytest.mark.parametrize("kind", ["make", "grow"])
@pytest.mark.parametrize("force", [False, True])
def test_a_stage_directory_that_is_a_link_is_refused_and_its_target_kept(work, photos, kind, force):
    plan = Plan("linked")
    stage_id = fakes.add_stage(plan, kind, "a", {"value": 1, "steps": 2}, kinds=fakes.KINDS)
    (work / stage_id).symlink_to(photos)
    known = state.statuses(plan, work)
    assert "is a link to" in known[stage_id].why
    outcome = fakes.run(plan, work, force=lambda _: force)
    assert list(outcome.failed) == [stage_id]
    assert "is a link to" in outcome.failed[stage_id]
    assert untouched(photos)
    (work / stage_id).unlink()  # the fix: a folder, or nothing, in its place
    assert fakes.run(plan, work).ok


def test_a_finished_stage_behind_a_link_is_not_used(work, tmp_path):
    plan = fakes.diamond()
    assert fakes.run(plan, work).ok
    stage_id = fakes.id_of(plan, "d")
    (work / stage_id).rename(tmp_path / "moved")
    (work / stage_id).symlink_to(tmp_path / "moved")
    record, fault = state.finished(plan.stages[stage_id], work)
    assert record is None
    assert "is a link to" in str(fault)
    with pytest.raises(KdepError, match="is a link to"):
        state.verify_input(work, stage_id)
    assert (tmp_path / "moved" / "stage.json").exists()


def test_a_work_dir_that_is_a_link_to_another_disk_works(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "disk")
    plan = fakes.diamond()
    assert fakes.run(plan, tmp_path / "work").ok
    assert len(fakes.run(plan, tmp_path / "work").ran) == 0
    assert work_dir.survey(tmp_path / "work", {}, {})


@pytest.mark.parametrize("what", ["a file", "a fifo", "a folder"])
def test_a_lock_that_is_no_file_of_its_own_is_refused(work, tmp_path, what):
    plan = fakes.diamond()
    stage_id = fakes.id_of(plan, "a")
    target = tmp_path / "target"
    target.write_text("")
    place = work / lock.LOCKS / stage_id
    if what == "a folder":
        (tmp_path / "locks").mkdir()
        (work / lock.LOCKS).symlink_to(tmp_path / "locks")
    else:
        place.parent.mkdir()
        place.symlink_to(target) if what == "a file" else os.mkfifo(place)
    assert not lock.StageLock(work, stage_id).held_elsewhere()
    with pytest.raises(KdepError):
        lock.StageLock(work, stage_id).take()
    outcome = fakes.run(plan, work) if what != "a folder" else None
    if outcome is not None:
        assert list(outcome.failed) == [stage_id]
        assert "expected a regular file" in outcome.failed[stage_id]
    assert target.read_text() == ""
    assert not list((tmp_path / "locks").glob("*"))


@pytest.mark.parametrize("name", [state.LOG, state.FAILED, state.STAGE, state.DAMAGED])
@pytest.mark.parametrize("fifo", [False, True])
def test_the_engines_own_files_are_written_through_no_link(work, photos, name, fifo):
    plan = Plan("planted")
    stage_id = fakes.add_stage(plan, "make", "a", {"do": "raise"}, kinds=fakes.KINDS)
    (work / stage_id).mkdir()
    if fifo:
        os.mkfifo(work / stage_id / name)
    else:
        (work / stage_id / name).symlink_to(photos / "a.jpg")
    assert state.failure(work / stage_id) is None
    assert list(fakes.run(plan, work).failed) == [stage_id]
    assert untouched(photos)
    assert os.stat(photos / "a.jpg").st_nlink == 1
    fakes.run(plan, work)
    assert state.failure(work / stage_id) is not None
    assert untouched(photos)


@pytest.mark.parametrize("name", ["stage.json", "value.txt"])
def test_a_fifo_in_a_finished_stage_is_reported_and_does_not_block(work, name):
    plan = fakes.diamond()
    assert fakes.run(plan, work).ok
    stage_id = fakes.id_of(plan, "d")
    (work / stage_id / name).unlink()
    os.mkfifo(work / stage_id / name)
    record, fault = state.finished(plan.stages[stage_id], work, verify=True)
    assert record is None
    assert fault
    assert fakes.run(plan, work).ran == [stage_id]


def test_a_stage_that_leaves_a_fifo_fails_with_its_name(work):
    (work / "x").mkdir()
    os.mkfifo(work / "x" / "pipe")
    with pytest.raises(KdepError, match="pipe is a FIFO"):
        state.list_files(work / "x")


def test_pruning_goes_through_no_link(work, photos):
    plan = fakes.diamond()
    stage_id = fakes.id_of(plan, "a")
    (work / stage_id).symlink_to(photos)
    entry = work_dir.WorkDirEntry(stage_id, 0, "cut", "", ())
    assert not work_dir.remove(work, entry)
    assert work_dir.survey(work, {}, {}) == []
    (work / ".cluster").symlink_to(photos)
    assert work_dir.survey(work, {}, {}) == []
    assert untouched(photos)


# --- results ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["records", "pictures", "plots"])
def test_a_results_subfolder_that_is_a_link_is_refused(work, tmp_path, photos, name):
    suite, plan = planned()
    run_all(plan, work)
    results = tmp_path / "results"
    results.mkdir()
    (results / name).symlink_to(photos)
    with pytest.raises(KdepError, match="is a link to"):
        collect(suite, plan, work, results)
    assert untouched(photos)


def test_a_results_folder_that_is_a_link_works(work, tmp_path):
    suite, plan = planned()
    run_all(plan, work)
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    assert collect(suite, plan, work, tmp_path / "results")["ok"] == len(plan.runs)


@pytest.mark.parametrize("kind", ["link", "fifo", "device"])
def test_a_record_that_is_no_regular_file_is_damaged_and_does_not_block(
    work, tmp_path, photos, kind
):
    suite, plan = planned()
    run_all(plan, work)
    results = tmp_path / "results"
    collect(suite, plan, work, results)
    path = sorted((results / "records").glob("*.json"))[0]
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(photos / "a.jpg" if kind == "link" else "/dev/zero")
    (damaged,) = store.read(results).damaged
    assert damaged.file == path.name
    assert report.build(results)["damaged"] == 1
    assert collect(suite, plan, work, results)["written"] == 1
    assert untouched(photos)
    assert store.read(results).damaged == []


def test_a_prediction_image_is_not_written_through_a_link(work, tmp_path, photos):
    suite, plan = planned()
    run_all(plan, work)
    results = tmp_path / "results"
    collect(suite, plan, work, results)
    picture = next((results / "pictures").glob("*/*.png"))
    picture.unlink()
    picture.symlink_to(photos / "a.jpg")
    (results / "records" / f"{picture.parent.name}.json").unlink()
    collect(suite, plan, work, results)
    assert untouched(photos)
    assert picture.read_bytes() == b"png"


# --- sharing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_all_that_a_run_leaves_respects_the_umask(work, tmp_path, umask):
    command = [sys.executable, str(fakes.HERE / "engine_fakes.py"), str(work), "diamond()"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run(command, check=True, umask=umask, env=env)  # its fork server has its umask
    suite, plan = planned()
    run_all(plan, tmp_path / "other")
    old = os.umask(umask)
    try:
        collect(suite, plan, tmp_path / "other", tmp_path / "results")
    finally:
        os.umask(old)
    for place in (work, tmp_path / "results"):
        for path in place.rglob("*"):
            mode = stat.S_IMODE(path.lstat().st_mode)
            expected = (0o777 if path.is_dir() else 0o666) & ~umask
            assert mode == expected, (path, oct(mode))


def test_a_log_cannot_be_a_device(tmp_path, capfd):
    plan = Plan("p")
    stage_id = fakes.add_stage(plan, "make", "a", {}, kinds=fakes.KINDS)
    (tmp_path / stage_id).mkdir()
    (tmp_path / stage_id / state.LOG).symlink_to("/dev/full")
    code, output = worker.run_stage(
        stage_process.StageRequest(plan.stages[stage_id], tmp_path), lambda *_: None
    )
    assert code == stage_process.FAULT
    assert "stage.log is a link" in str(output)
    print("still here", file=sys.stderr)

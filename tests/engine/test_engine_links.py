"""Links, FIFOs and devices in a work dir or results folder are refused and never followed."""

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


def kdep_and_scratch_plan() -> tuple[Suite, Plan]:
    """A suite of kdep and scratch, and its plan, whose stages only pretend to train."""
    suite = build(methods=["kdep", "scratch"])
    return suite, build_plan(suite, fakes.PRETEND)


def run_to_the_end(plan: Plan, work: Path) -> None:
    """Runs every stage of the plan; none may fail."""
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
    """An empty work dir."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def is_untouched(photos: Path) -> bool:
    """Whether the user's folder still holds its one file, with its content."""
    names = [p.name for p in photos.iterdir()]
    return names == ["a.jpg"] and (photos / "a.jpg").read_text() == "my photo"


@pytest.mark.parametrize("kind", ["make", "grow"])
@pytest.mark.parametrize("force", [False, True])
def test_a_stage_directory_that_is_a_link_is_refused_and_its_target_kept(work, photos, kind, force):
    plan = Plan("linked")
    stage_id = fakes.add_stage(plan, kind, "a", {"value": 1, "steps": 2}, kinds=fakes.KINDS)
    (work / stage_id).symlink_to(photos)
    statuses = state.statuses(plan, work)
    assert "is a link to" in statuses[stage_id].why
    outcome = fakes.run(plan, work, force=lambda _: force)
    assert list(outcome.failed) == [stage_id]
    assert "is a link to" in outcome.failed[stage_id]
    assert is_untouched(photos)
    (work / stage_id).unlink()  # the fix that the error advises
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


@pytest.mark.parametrize("kind", ["link to a file", "fifo", "locks folder is a link"])
def test_a_lock_that_is_not_a_regular_file_is_refused(work, tmp_path, kind):
    plan = fakes.diamond()
    stage_id = fakes.id_of(plan, "a")
    target = tmp_path / "target"
    target.write_text("")
    lock_path = work / lock.LOCKS / stage_id
    if kind == "locks folder is a link":
        (tmp_path / "locks").mkdir()
        (work / lock.LOCKS).symlink_to(tmp_path / "locks")
    else:
        lock_path.parent.mkdir()
        lock_path.symlink_to(target) if kind == "link to a file" else os.mkfifo(lock_path)
    assert not lock.StageLock(work, stage_id).is_held_by_any()
    with pytest.raises(KdepError):
        lock.StageLock(work, stage_id).take()
    if kind != "locks folder is a link":
        outcome = fakes.run(plan, work)
        assert list(outcome.failed) == [stage_id]
        assert "expected a regular file" in outcome.failed[stage_id]
    assert target.read_text() == ""
    assert not list((tmp_path / "locks").glob("*"))


@pytest.mark.parametrize("name", [state.LOG, state.FAILED, state.STAGE, state.DAMAGED])
@pytest.mark.parametrize("fifo", [False, True])
def test_the_engine_never_writes_its_files_through_a_link(work, photos, name, fifo):
    plan = Plan("planted")
    stage_id = fakes.add_stage(plan, "make", "a", {"do": "raise"}, kinds=fakes.KINDS)
    (work / stage_id).mkdir()
    if fifo:
        os.mkfifo(work / stage_id / name)
    else:
        (work / stage_id / name).symlink_to(photos / "a.jpg")
    assert state.failure(work / stage_id) is None
    assert list(fakes.run(plan, work).failed) == [stage_id]
    assert is_untouched(photos)
    assert os.stat(photos / "a.jpg").st_nlink == 1  # no hard link was made
    fakes.run(plan, work)
    assert state.failure(work / stage_id) is not None
    assert is_untouched(photos)


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


def test_a_fifo_among_a_stage_s_outputs_is_an_error_that_names_it(work):
    (work / "x").mkdir()
    os.mkfifo(work / "x" / "pipe")
    with pytest.raises(KdepError, match="pipe is a FIFO"):
        state.list_files(work / "x")


def test_pruning_does_not_follow_links(work, photos):
    plan = fakes.diamond()
    stage_id = fakes.id_of(plan, "a")
    (work / stage_id).symlink_to(photos)
    entry = work_dir.WorkDirEntry(stage_id, bytes=0, state="interrupted", finished="", needs=())
    assert not work_dir.remove(work, entry)
    assert work_dir.survey(work, {}, {}) == []
    (work / ".cluster").symlink_to(photos)
    assert work_dir.survey(work, {}, {}) == []
    assert is_untouched(photos)


# --- results ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["records", "pictures", "plots"])
def test_a_results_subfolder_that_is_a_link_is_refused(work, tmp_path, photos, name):
    suite, plan = kdep_and_scratch_plan()
    run_to_the_end(plan, work)
    results = tmp_path / "results"
    results.mkdir()
    (results / name).symlink_to(photos)
    with pytest.raises(KdepError, match="is a link to"):
        collect(suite, plan, work, results)
    assert is_untouched(photos)


def test_a_results_folder_that_is_a_link_works(work, tmp_path):
    suite, plan = kdep_and_scratch_plan()
    run_to_the_end(plan, work)
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    assert collect(suite, plan, work, tmp_path / "results")["ok"] == len(plan.runs)


@pytest.mark.parametrize("kind", ["link", "fifo", "device"])
def test_a_record_that_is_not_a_regular_file_is_damaged_and_does_not_block(
    work, tmp_path, photos, kind
):
    suite, plan = kdep_and_scratch_plan()
    run_to_the_end(plan, work)
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
    assert is_untouched(photos)
    assert store.read(results).damaged == []


def test_a_prediction_image_is_not_written_through_a_link(work, tmp_path, photos):
    suite, plan = kdep_and_scratch_plan()
    run_to_the_end(plan, work)
    results = tmp_path / "results"
    collect(suite, plan, work, results)
    image = next((results / "pictures").glob("*/*.png"))
    image.unlink()
    image.symlink_to(photos / "a.jpg")
    (results / "records" / f"{image.parent.name}.json").unlink()
    collect(suite, plan, work, results)
    assert is_untouched(photos)
    assert image.read_bytes() == b"png"


# --- file modes, logs -------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_every_file_of_a_run_respects_the_umask(work, tmp_path, umask):
    command = [sys.executable, str(fakes.HERE / "engine_fakes.py"), str(work), "diamond()"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run(command, check=True, umask=umask, env=env)  # its stages inherit the umask
    suite, plan = kdep_and_scratch_plan()
    run_to_the_end(plan, tmp_path / "other")
    former_umask = os.umask(umask)
    try:
        collect(suite, plan, tmp_path / "other", tmp_path / "results")
    finally:
        os.umask(former_umask)
    for folder in (work, tmp_path / "results"):
        for path in folder.rglob("*"):
            mode = stat.S_IMODE(path.lstat().st_mode)
            expected = (0o777 if path.is_dir() else 0o666) & ~umask
            assert mode == expected, f"{path} has mode {oct(mode)}"


def test_a_log_that_is_a_link_to_a_device_is_refused(tmp_path, capfd):
    plan = Plan("p")
    stage_id = fakes.add_stage(plan, "make", "a", {}, kinds=fakes.KINDS)
    (tmp_path / stage_id).mkdir()
    (tmp_path / stage_id / state.LOG).symlink_to("/dev/full")
    request = stage_process.StageRequest(plan.stages[stage_id], tmp_path)
    code, output = worker.run_stage(request, lambda *_: None)
    assert code == stage_process.FAULT
    assert "stage.log is a link" in str(output)
    print("stderr still works", file=sys.stderr)

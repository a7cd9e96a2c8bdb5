"""Each attempt to run a stage has a temporary directory, so it cannot damage a finished stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_fakes as fakes
import pytest

from kdep_bench.engine import attempts, state, worker
from kdep_bench.engine.lock import StageLock
from kdep_bench.paths import ROOT as REPO
from kdep_bench.suite.graph import Plan, add_stage

STAGE_ID = "grow-g-0123456789ab"  # kind, name and hash


def lock_is_held() -> bool:
    """Replaces the check of the lock: the process still holds it."""
    return True


def begin_attempt(
    work: Path, keep: bool = True, kernel: str | None = None, monkeypatch=None
) -> attempts.Attempt:
    """A started attempt of STAGE_ID.

    Args:
        keep: whether the files of the last attempt are kept.
        kernel: boot id of the attempt's machine (None: this machine).
    """
    (work / STAGE_ID).mkdir(exist_ok=True)
    if kernel is None:
        return attempts.begin(work, STAGE_ID, keep, lock_is_held)
    assert monkeypatch is not None
    with monkeypatch.context() as patched:
        patched.setattr(attempts, "boot_id", lambda: kernel)
        return attempts.begin(work, STAGE_ID, keep, lock_is_held)


def finish(attempt: attempts.Attempt, text: str) -> bool:
    """Writes an output and stage.json; returns whether the attempt became the stage's result."""
    (attempt.path / "out.txt").write_text(text)
    attempt.write(state.STAGE, b"{}")
    return attempt.commit(lock_is_held)


def names(folder: Path) -> list[str]:
    """Sorted names of the files in a folder."""
    return sorted(p.name for p in folder.iterdir())


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Relative path -> (bytes, time of the last change) of every file below `folder`."""
    return {
        os.path.relpath(p, folder): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_a_stage_runs_in_a_temporary_directory_that_is_renamed(tmp_path):
    attempt = begin_attempt(tmp_path)
    assert attempt.path.parent == tmp_path  # a path relative to it is the same after the rename
    assert attempts.current_dir(tmp_path, STAGE_ID) == attempt.path
    os.write(attempt.open_log(), b"began\n")
    assert (tmp_path / STAGE_ID / state.LOG).read_text() == "began\n"
    assert finish(attempt, "a")
    attempt.close(discard=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [STAGE_ID]
    assert sorted(p.name for p in (tmp_path / STAGE_ID).iterdir()) == [
        "out.txt",
        "stage.json",
        "stage.log",
    ]
    assert (tmp_path / STAGE_ID / state.LOG).read_text() == "began\n"
    assert attempts.current_dir(tmp_path, STAGE_ID) == tmp_path / STAGE_ID


@pytest.mark.parametrize("keep", [True, False])
def test_a_process_assumed_dead_cannot_change_the_finished_stage(tmp_path, monkeypatch, keep):
    first = begin_attempt(tmp_path, keep, "elsewhere", monkeypatch)
    log = first.open_log()
    (first.path / "half.txt").write_text("half")
    handle = open(first.path / "half.txt", "a")  # noqa: SIM115
    second = begin_attempt(tmp_path, keep)
    assert (second.path / "half.txt").exists() == keep
    assert finish(second, "second")
    second.close(discard=False)
    before = content(tmp_path / STAGE_ID)
    # The first owner continues: it writes to open files, makes folders and tries to finish.
    os.write(log, b"awake\n")
    handle.write("more")
    handle.close()
    (first.path / "run").mkdir(parents=True)
    (first.path / "run" / "out.txt").write_text("first")
    with pytest.raises(OSError, match="No such file"):  # its directory was deleted
        first.write(state.STAGE, b'{"first": 1}')
    first.fail(b"{}")
    assert not first.commit(lock_is_held)
    first.close(discard=True)
    assert content(tmp_path / STAGE_ID) == before
    assert [p.name for p in tmp_path.iterdir()] == [STAGE_ID]


def test_a_delayed_process_cannot_finish_a_stage_that_another_process_took_over(
    tmp_path, monkeypatch
):
    first = begin_attempt(tmp_path, True, "elsewhere", monkeypatch)
    (first.path / "out.txt").write_text("first")
    first.write(state.STAGE, b"{}")
    second = begin_attempt(tmp_path)
    assert not first.commit(lock_is_held)
    assert finish(second, "second")
    assert not first.commit(lock_is_held)
    assert (tmp_path / STAGE_ID / "out.txt").read_text() == "second"


def test_files_of_an_attempt_are_copied_if_its_process_may_live_and_moved_if_it_is_dead(
    tmp_path, monkeypatch
):
    first = begin_attempt(tmp_path, True, "elsewhere", monkeypatch)
    (first.path / "run").mkdir()
    (first.path / "run" / "a.pth").write_text("a")
    os.mkfifo(first.path / "run" / "pipe")
    inode = (first.path / "run" / "a.pth").stat().st_ino
    second = begin_attempt(tmp_path)
    copy = second.path / "run" / "a.pth"
    assert copy.read_text() == "a"
    assert copy.stat().st_ino != inode
    assert not (second.path / "run" / "pipe").exists()
    copied_inode = copy.stat().st_ino
    third = begin_attempt(tmp_path)  # the second ran on this machine, where its lock is free
    assert (third.path / "run" / "a.pth").stat().st_ino == copied_inode  # moved
    assert not second.path.exists()
    assert finish(third, "third")
    assert [p.name for p in tmp_path.iterdir()] == [STAGE_ID]


def test_files_left_by_an_older_release_or_an_interrupted_run_are_resumed(tmp_path):
    (tmp_path / STAGE_ID).mkdir()
    for name in ("steps.txt", state.LOG, state.FAILED):
        (tmp_path / STAGE_ID / name).write_text(name)
    first = begin_attempt(tmp_path)
    assert (first.path / "steps.txt").exists()
    assert not (tmp_path / STAGE_ID / state.FAILED).exists()
    assert first.commit(lock_is_held)  # it was stopped and has no result
    first.close(discard=False)
    assert (tmp_path / STAGE_ID / "steps.txt").exists()
    assert (tmp_path / STAGE_ID / state.LOG).read_text() == state.LOG
    second = begin_attempt(tmp_path, keep=False)
    assert not list(second.path.iterdir())
    assert names(tmp_path / STAGE_ID) == [state.POINTER, state.LOG]


def test_a_stage_directory_deleted_by_hand_is_rerun(tmp_path):
    first = begin_attempt(tmp_path)
    (first.path / "steps.txt").write_text("0\n")
    os.unlink(tmp_path / STAGE_ID / state.POINTER)
    (tmp_path / STAGE_ID).rmdir()
    second = begin_attempt(tmp_path)
    assert not (second.path / "steps.txt").exists()


class SimulatedKill(BaseException):
    """Stands for a kill -9 during a system call."""


@pytest.mark.parametrize("other_machine", [False, True])
@pytest.mark.parametrize("kill_at", range(12))  # number of the system call, from 1; 0: no kill
def test_a_kill_at_any_rename_leaves_no_partial_result_and_the_stage_can_run_again(
    tmp_path, monkeypatch, kill_at, other_machine
):
    first = begin_attempt(tmp_path, True, "elsewhere" if other_machine else None, monkeypatch)
    (first.path / "steps.txt").write_text("0\n1\n")
    calls = 0
    for name in ("rename", "replace", "unlink", "link", "mkdir"):
        real_call = getattr(os, name)

        def call(*args, real_call=real_call, **kwargs):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise SimulatedKill
            return real_call(*args, **kwargs)

        monkeypatch.setattr(os, name, call)
    try:
        second = begin_attempt(tmp_path)
        (second.path / "steps.txt").write_text("0\n1\n2\n")
        finished = finish(second, "x")
    except SimulatedKill:
        finished = False
    monkeypatch.undo()
    if not finished and (tmp_path / STAGE_ID / state.STAGE).exists():
        # The process was killed after its result was complete.
        assert (tmp_path / STAGE_ID / "steps.txt").read_text() == "0\n1\n2\n"
        return
    if not finished:
        third = begin_attempt(tmp_path)
        # The file is missing if the process was killed between the last two renames.
        if (third.path / "steps.txt").exists():
            assert (third.path / "steps.txt").read_text() in ("0\n1\n", "0\n1\n2\n")
        (third.path / "steps.txt").write_text("0\n1\n2\n")
        assert finish(third, "x")
    assert (tmp_path / STAGE_ID / "steps.txt").read_text() == "0\n1\n2\n"
    assert sorted(p.name for p in (tmp_path / STAGE_ID).iterdir() if p.name != state.LOG) == [
        "out.txt", "stage.json", "steps.txt"
    ]  # fmt: skip


# --- real processes -----------------------------------------------------------------------------

# Arguments: work dir, boot id, stage kind, stage spec, seconds between heartbeats.
OTHER_MACHINE_CODE = """
import os, sys
from pathlib import Path
import engine_fakes as fakes
from kdep_bench.engine import attempts, lock, worker
from kdep_bench.suite.graph import Plan, add_stage
# Another machine, on a shared file system without flock.
lock.boot_id = attempts.boot_id = lambda: sys.argv[2]
lock._flock = lambda fd, how=0: True
lock.HEARTBEAT_INTERVAL = float(sys.argv[5])
plan = Plan("apart")
stage_id = add_stage(plan, sys.argv[3], "a", eval(sys.argv[4]), kinds=fakes.KINDS)
print("up", flush=True)
request = worker.StageRequest(plan.stages[stage_id], Path(sys.argv[1]))
code, output = worker.run_stage(request, lambda *_: None)
os._exit(code)
"""


def start_machine(
    work: Path, name: str, kind: str, spec: dict, beat: float = 600.0
) -> subprocess.Popen:
    """Starts a stage as if on the machine `name`; `beat`: seconds between its heartbeats."""
    path = os.pathsep.join((str(REPO), str(fakes.HERE)))
    return subprocess.Popen(
        [sys.executable, "-c", OTHER_MACHINE_CODE, str(work), name, kind, repr(spec), str(beat)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4])  # seconds until the first owner is stopped
@pytest.mark.parametrize(
    ("kind", "spec"),
    [("grow", {"steps": 25, "sleep": 0.02}), ("make", {"sleep": 0.6, "value": 3})],
)
def test_a_stopped_process_that_continues_does_not_change_its_successor_s_stage(
    tmp_path, kind, spec, delay
):
    plan = Plan("apart")
    stage_id = add_stage(plan, kind, "a", spec, kinds=fakes.KINDS)
    first = start_machine(tmp_path, "one", kind, spec)
    try:
        end = time.monotonic() + 60
        while (
            attempts.current_dir(tmp_path, stage_id) == tmp_path / stage_id
            and time.monotonic() < end
        ):
            time.sleep(0.005)
        time.sleep(delay)
        first.send_signal(signal.SIGSTOP)
        lock = StageLock(tmp_path, stage_id)
        assert lock.path.read_bytes()
        # `lock.Watch` does the same after `lock.HEARTBEAT_TIMEOUT` seconds without a heartbeat.
        os.truncate(lock.path, 0)
        second = start_machine(tmp_path, "two", kind, spec)
        assert second.wait(60) == worker.DONE
        record, _ = state.finished(plan.stages[stage_id], tmp_path, verify=True)
        assert record is not None
        before = content(tmp_path / stage_id)
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == worker.BUSY
    finally:
        first.kill()
        first.wait()
    assert content(tmp_path / stage_id) == before
    assert state.finished(plan.stages[stage_id], tmp_path, verify=True)[0] == record
    remaining = [p.name for p in tmp_path.iterdir() if p.name not in (".locks", "trace.log")]
    assert remaining == [stage_id]
    if kind == "grow":
        steps = (tmp_path / stage_id / "steps.txt").read_text().split()
        assert steps == [str(k) for k in range(25)]
        assert (
            json.loads((tmp_path / stage_id / "stage.json").read_text())["outputs"]["value"] == 25
        )


def test_a_failed_stage_s_files_are_in_its_stage_directory(tmp_path):
    plan = fakes.diamond(a={"do": "raise"})
    stage_id = fakes.id_of(plan, "a")
    assert list(fakes.run(plan, tmp_path).failed) == [stage_id]
    assert sorted(p.name for p in (tmp_path / stage_id).iterdir()) == [
        "failed.json", "half.bin", "stage.log"
    ]  # fmt: skip
    assert "a fault of the stage" in (tmp_path / stage_id / "stage.log").read_text()
    assert [p.name for p in tmp_path.iterdir() if ".try-" in p.name] == []

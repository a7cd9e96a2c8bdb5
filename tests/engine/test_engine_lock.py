"""A stage is run by one process at a time: locks of live, dead, stopped and remote owners."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_fakes as fakes

from kdep_bench.engine import local_pool, lock, stage_process, worker
from kdep_bench.engine.lock import StageLock, Watch


def write_remote_owner(work: Path, stage_id: str = "x", beat: int = 0) -> lock.Owner:
    """Writes the lock file of an owner on another machine, whose flock has no effect here.

    `beat`: number of the owner's last heartbeat.
    """
    owner = dataclasses.replace(lock.this_process(), host="elsewhere", boot="another-kernel")
    (work / lock.LOCKS).mkdir(parents=True, exist_ok=True)
    (work / lock.LOCKS / stage_id).write_bytes(lock._text(owner, beat))
    return owner


def start_holder(work: Path, *lines: str) -> subprocess.Popen:
    """Starts a process that takes the lock x and then runs the Python `lines`."""
    code = "\n".join(
        [
            "import os, sys, time; from pathlib import Path",
            "from kdep_bench.engine.lock import StageLock",
            f"l = StageLock(Path({str(work)!r}), 'x'); assert l.take()",
            *lines,
            "print('taken', flush=True); time.sleep(60)",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "taken" in process.stdout.readline()
    return process


def test_a_lock_is_exclusive_and_names_its_owner(tmp_path):
    first, second = StageLock(tmp_path, "x"), StageLock(tmp_path, "x")
    assert not second.is_held_by_any()
    assert first.take()
    assert first.still_held()
    assert not second.take()
    assert second.is_held_by_any()
    assert f"process {os.getpid()} on " in second.owner()
    first.free()
    assert second.take()
    second.free()
    assert not first.is_held_by_any()


def test_the_lock_of_a_killed_process_is_free_although_its_forked_child_lives(tmp_path):
    # The fork closes the child's copy of the lock's file, before the child prints its pid.
    child = "if os.fork() == 0: print(os.getpid(), flush=True); time.sleep(30); os._exit(0)"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, time; from pathlib import Path\n"
            "from kdep_bench.engine.lock import StageLock\n"
            f"l = StageLock(Path({str(tmp_path)!r}), 'x'); assert l.take()\n{child}\n"
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    assert StageLock(tmp_path, "x").is_held_by_any()
    process.kill()
    process.wait()
    try:
        os.kill(orphan, 0)  # still there
        new_lock = StageLock(tmp_path, "x")
        assert new_lock.take()
        new_lock.free()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_stopped_process_on_this_machine_keeps_its_lock_without_a_heartbeat(tmp_path):
    process = start_holder(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        watch = Watch(tmp_path, stale=0.05)
        assert watch.held("x")
        time.sleep(0.2)
        assert watch.held("x")
        assert not StageLock(tmp_path, "x").take()
    finally:
        process.kill()
        process.wait()
    assert not Watch(tmp_path).held("x")


def test_a_remote_lock_expires_without_a_heartbeat(tmp_path):
    owner = write_remote_owner(tmp_path)
    watch, local_lock = Watch(tmp_path, stale=0.3), StageLock(tmp_path, "x")
    for beat in range(1, 8):
        assert watch.held("x")
        assert not local_lock.take()
        (tmp_path / lock.LOCKS / "x").write_bytes(lock._text(owner, beat))
        time.sleep(0.1)
    assert watch.held("x")
    time.sleep(0.4)
    assert not watch.held("x")  # no heartbeat for longer than `stale`
    assert local_lock.take()
    local_lock.free()


def test_the_expiry_of_a_lock_does_not_depend_on_file_times(tmp_path):
    write_remote_owner(tmp_path)
    for when in (0, 2**32):  # the years 1970 and 2106
        os.utime(tmp_path / lock.LOCKS / "x", (when, when))
        assert Watch(tmp_path, stale=0.0).held("x")
        assert not StageLock(tmp_path, "x").take()


def test_a_truncated_lock_file_still_locks_and_one_of_an_older_format_does_not(tmp_path):
    owner = write_remote_owner(tmp_path)
    path = tmp_path / lock.LOCKS / "x"
    path.write_bytes(lock._text(owner, 3)[:50])
    assert not StageLock(tmp_path, "x").take()
    path.write_text("1234\n")
    local_lock = StageLock(tmp_path, "x")
    assert local_lock.take()
    local_lock.free()


def test_a_stage_whose_lock_was_taken_over_ends_without_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL", 0.05)
    plan = fakes.Plan("lost")
    stage_id = fakes.add_stage(plan, "make", "a", {"sleep": 3.0}, kinds=fakes.KINDS)
    former_handler = signal.signal(signal.SIGTERM, stage_process.stop)
    out, err = os.dup(1), os.dup(2)  # run_stage redirects both; they are restored below
    streams = sys.stdout, sys.stderr
    try:
        take_over = lambda *_: write_remote_owner(tmp_path, stage_id)  # noqa: E731
        request = stage_process.StageRequest(plan.stages[stage_id], tmp_path)
        (tmp_path / stage_id).mkdir()
        monkeypatch.setattr(fakes, "trace", take_over)
        code, output = worker.run_stage(request, lambda *_: None)
    finally:
        sys.stdout, sys.stderr = streams
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.signal(signal.SIGTERM, former_handler)
    assert (code, output) == (worker.BUSY, None)
    assert not (tmp_path / stage_id / "stage.json").exists()
    assert not (tmp_path / stage_id / "failed.json").exists()


def test_the_pool_takes_a_stage_over_from_a_dead_remote_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_TIMEOUT", 1.0)
    monkeypatch.setattr(local_pool, "_ELSEWHERE_POLL", 0.2)
    plan = fakes.diamond()
    write_remote_owner(tmp_path, fakes.id_of(plan, "b"))
    outcome = fakes.run(plan, tmp_path)
    assert outcome.ok
    assert len(outcome.ran) == 4
    assert (tmp_path / lock.LOCKS / fakes.id_of(plan, "b")).read_bytes() == b""


def test_an_owner_does_not_hold_a_lock_whose_file_was_emptied(tmp_path):
    """Otherwise an owner that was stopped and replaced would report a failure of a stage that its
    successor has finished.
    """
    first = StageLock(tmp_path, "a")
    assert first.take()
    assert first.still_held()
    os.truncate(first.path, 0)  # as a Watch on another machine does, or a successor that frees it
    assert not first.still_held()
    first.free()

"""Work dirs: listed, sized, pruned, moved and copied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import engine_fakes as fakes
import pytest
from test_engine_collect import world

from kdep_bench.engine import attempts, cited_stages, cluster, state, work_dir
from kdep_bench.engine.collect import collect
from kdep_bench.engine.lock import StageLock
from kdep_bench.errors import KdepError

REPO = Path(__file__).resolve().parents[2]


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPO / "tools" / "work_dir.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def pruned(work: Path, results: list[Path], plans: list[fakes.Plan]) -> set[str]:
    """Kind-and-name of what goes."""
    planned = {i: [p.name] for p in plans for i in p.stages}
    cited_stages = work_dir.citations(results)
    gone = work_dir.prunable(
        work_dir.survey(work, cited_stages, planned), bool(cited_stages or planned)
    )
    assert all(work_dir.remove(work, e) for e in gone)
    assert not any((work / e.id).exists() for e in gone)
    return {e.id.rpartition("-")[0] for e in gone}


def test_sizes_and_states(tmp_path):
    plan = fakes.diamond(b={"do": "raise"})
    fakes.run(plan, tmp_path)
    (tmp_path / "make-cut-0123456789ab").mkdir()
    (tmp_path / "notes").mkdir()
    bad = tmp_path / fakes.id_of(plan, "c") / "stage.json"
    bad.write_bytes(bad.read_bytes()[:50])
    entries = {e.id: e for e in work_dir.survey(tmp_path, {}, {})}
    assert {e.state for e in entries.values()} == {"done", "failed", "cut", "damaged"}
    a = tmp_path / fakes.id_of(plan, "a")
    output = subprocess.run(["du", "-sb", str(a)], capture_output=True, text=True)
    folder = a.stat().st_size  # du counts the directory itself
    assert entries[a.name].bytes == int(output.stdout.split()[0]) - folder
    assert "notes" not in entries
    assert entries["make-cut-0123456789ab"].bytes == 0


def test_cited_and_planned_stages_are_kept_and_the_others_pruned(tmp_path):
    suite, plan, work, results = world(tmp_path, methods=["kdep", "scratch"])
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    _, other_plan, _, _ = world(tmp_path, methods=[{"base": "kdep", "transform": {"T": 0.9}}])
    assert fakes.run(other_plan, work).ok
    (work / "notes").mkdir()
    kept = set(plan.stages)
    new = set(other_plan.stages) - kept
    assert pruned(work, [results], [other_plan]) == set()
    gone = pruned(work, [results], [])
    assert gone == {i.rpartition("-")[0] for i in new}
    assert {p.name for p in work.iterdir()} >= kept | {"notes"}
    assert fakes.run(plan, work).ran == []
    assert len(fakes.run(other_plan, work).ran) == len(new)


def test_dependencies_of_a_kept_stage_are_kept(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    d = fakes.id_of(plan, "d")
    fakes.run(fakes.diamond(a={"value": 5}), tmp_path)
    entries = work_dir.survey(tmp_path, {d: ["board"]}, {})
    kept = {e.id: e.kept_by for e in entries if e.kept_by}
    assert set(kept) == set(plan.stages)
    assert kept[d] == ("board",)
    assert kept[fakes.id_of(plan, "b")] == (f"needed by {d}",)


def test_a_set_aside_record_keeps_nothing_and_a_damaged_one_stops_all(tmp_path):
    suite, plan, work, results = world(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    path = next((results / "records").glob("*.json"))
    (results / "superseded").mkdir()
    whole = path.read_text()
    path.rename(results / "superseded" / path.name)
    assert path.stem not in work_dir.citations([results])
    path.write_text(whole[:200])
    with pytest.raises(KdepError, match="not valid JSON"):
        work_dir.citations([results])
    path.write_text("{}")
    with pytest.raises(KdepError, match="no valid list of stages"):
        work_dir.citations([results])


def test_pruning_without_references_is_refused(tmp_path):
    fakes.run(fakes.diamond(), tmp_path)
    with pytest.raises(KdepError, match="every stage would be removed"):
        work_dir.prunable(work_dir.survey(tmp_path, {}, {}), False)


def test_a_running_stage_is_kept_and_one_locked_meanwhile_is_skipped(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    a = fakes.id_of(plan, "a")
    (entry,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.id == a)
    lock = StageLock(tmp_path, a)
    assert lock.take()
    (held,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.id == a)
    assert held.kept_by == ("running",)
    assert not work_dir.remove(tmp_path, entry)
    assert (tmp_path / a / "stage.json").exists()
    lock.free()
    assert work_dir.remove(tmp_path, entry)


def test_links_out_of_the_work_dir_are_not_followed(tmp_path):
    work, outside = tmp_path / "work", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    stage = work / "make-x-0123456789ab"
    stage.mkdir(parents=True)
    (stage / "link").symlink_to(outside)
    (work / "make-y-0123456789ab").symlink_to(outside)
    entries = work_dir.survey(work, {}, {})
    assert [e.id for e in entries] == [stage.name]
    assert work_dir.remove(work, entries[0])
    assert (outside / "precious").exists()


def left_run(work: Path, executor: str, *stages: str) -> Path:
    """The room of a cluster run as its coordinator leaves it."""
    room = work / ".cluster" / "toy-ab12_xyz"
    (room / ".snakemake" / "slurm_logs").mkdir(parents=True)
    (room / ".snakemake" / "slurm_logs" / "1.log").write_bytes(b"x" * 1000)
    said = {"stages": dict.fromkeys(stages), "executor": executor}
    (room / "suite.json").write_text(json.dumps(said))
    return room


def test_a_cluster_run_is_kept_while_it_or_one_of_its_stages_runs(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    room = left_run(tmp_path, "snakemake-local", *plan.stages)

    def look() -> work_dir.WorkDirEntry:
        (entry,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.is_run)
        return entry

    entry = look()
    assert (entry.state, entry.kept_by, entry.id) == ("ended", (), ".cluster/toy-ab12_xyz")
    assert entry.bytes == 1000 + (room / "suite.json").stat().st_size
    for lock in (cluster.run_lock(room), StageLock(tmp_path, fakes.id_of(plan, "a"))):
        assert lock.take()
        assert look().state == "running"
        assert look().kept_by
        lock.free()
    lock = cluster.run_lock(room)
    assert lock.take()
    assert not work_dir.remove(tmp_path, entry)  # taken since it was looked at
    lock.free()
    assert work_dir.remove(tmp_path, entry)
    assert not room.exists()
    assert len(work_dir.survey(tmp_path, {}, {})) == len(plan.stages)


@pytest.mark.parametrize("executor", ["slurm", "kubernetes"])
def test_a_cluster_run_with_an_unreachable_queue_is_kept_until_its_stages_are_done(
    tmp_path, monkeypatch, executor
):
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    plan = fakes.diamond()
    left_run(tmp_path, executor, *plan.stages)
    (entry,) = work_dir.survey(tmp_path, {}, {})
    assert entry.state == "queued"
    assert "that this machine cannot see" in entry.kept_by[0]
    assert work_dir.prunable([entry], True) == []
    for stage_id in plan.stages:
        (tmp_path / stage_id).mkdir()
        (tmp_path / stage_id / "stage.json").write_text("{}")
    entries = work_dir.survey(tmp_path, {}, {i: ["toy"] for i in plan.stages})
    assert [e.id for e in work_dir.prunable(entries, True)] == [entry.id]


def test_a_link_is_no_cluster_run(tmp_path):
    work, outside = tmp_path / "work", tmp_path / "outside"
    outside.mkdir()
    (work / ".cluster").mkdir(parents=True)
    (work / ".cluster" / "toy-ab12_xyz").symlink_to(outside)
    assert work_dir.survey(work, {}, {}) == []


def test_gc_is_a_dry_run_by_default(tmp_path):
    work, old = tmp_path / "w", "make-old-0123456789ab"
    (work / old).mkdir(parents=True)
    (work / old / "big.bin").write_bytes(b"x" * 12345)
    completed = tool("--work-dir", str(work))
    assert "12.3 kB" in completed.stdout
    assert "1 stage directories, 12.3 kB" in completed.stdout
    left_run(work, "snakemake-local", old)
    assert "1 stage directories and 1 cluster runs" in tool("--work-dir", str(work)).stdout
    dry = tool("smoke", "--work-dir", str(work), "--gc")
    both = "1 stage directories and 1 cluster runs, 13.4 kB"
    assert f"unreferenced: {both}; --delete removes them" in dry.stdout
    assert (work / old).exists()
    assert json.loads(tool("--work-dir", str(work), "--json").stdout)[0]["id"] == old
    done = tool("smoke", "--work-dir", str(work), "--gc", "--delete")
    assert f"removed {both}" in done.stdout
    assert not (work / old).exists()
    assert list((work / ".cluster").iterdir()) == []
    assert tool("--work-dir", str(tmp_path / "none")).returncode == 2


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_work_dir_counts_and_verify_finds_what_the_copy_broke(tmp_path, how):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path / "old")
    how(tmp_path / "old", tmp_path / "new")
    new = tmp_path / "new"
    assert all(s.done for s in state.statuses(plan, new, verify=True).values())
    (new / fakes.id_of(plan, "c") / "value.txt").write_text("999")  # as long as "101"
    assert all(s.done for s in state.statuses(plan, new).values())
    known = state.statuses(plan, new, verify=True)
    assert "its checksum differs" in known[fakes.id_of(plan, "c")].why
    outcome = fakes.local_pool.run_plan(plan, new, known, fakes.FAST)
    assert [i.split("-")[1] for i in outcome.ran] == ["c"]
    assert (new / fakes.id_of(plan, "c") / "value.txt").read_text() == "101"


def test_the_directory_of_a_killed_try_is_kept_with_its_stage_and_goes_with_it(tmp_path):
    plan = fakes.diamond()
    kept, gone = fakes.id_of(plan, "a"), fakes.id_of(plan, "b")
    for stage_id in (kept, gone):
        (tmp_path / stage_id).mkdir()
        attempt = attempts.begin(tmp_path, stage_id, True, lambda: True)
        (attempt.path / "half.bin").write_bytes(b"x" * 1000)
        os.close(attempt.open_log())
    forgotten = tmp_path / f"{kept}.try-{'0' * 16}"
    forgotten.mkdir()
    entries = {e.id: e for e in work_dir.survey(tmp_path, {}, {kept: ["p"]})}
    assert len(entries) == 5
    next_try = next(
        e
        for i, e in entries.items()
        if ".try-" in i and i in attempts.attempt_names(tmp_path, kept)
    )
    assert next_try.kept_by == (f"the next attempt of {kept}",)
    assert next_try.bytes == 1000
    chosen = work_dir.prunable(entries.values(), True)
    assert all(work_dir.remove(tmp_path, e) for e in chosen)
    left = [p.name for p in tmp_path.iterdir() if p.name != ".locks"]
    assert sorted(left) == sorted([kept, next_try.id])


def gc(work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "tools/work_dir.py"), "--work-dir", str(work), "--gc"]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False)


def test_what_a_results_folder_elsewhere_cites_is_kept_without_being_named(tmp_path):
    suite, plan, work, _ = world(tmp_path)
    results = tmp_path / "elsewhere" / "results"
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    collect(suite, plan, work, results)
    assert [r.results for r in cited_stages.citing_folders(work)] == [results]
    completed = gc(work, "--delete")
    assert completed.returncode == 0, completed.stderr
    assert {p.name for p in work.glob("*-*")} == set(plan.stages)

    hidden = results.parent.rename(tmp_path / "unmounted")
    completed = gc(work)
    assert completed.returncode == 0
    assert f"{results} no longer exists" in completed.stdout
    completed = gc(work, "--delete")
    assert completed.returncode == 2
    assert f"--forget {results}" in completed.stderr
    assert {p.name for p in work.glob("*-*")} == set(plan.stages)
    hidden.rename(results.parent)
    assert "unreferenced: 0 stage" in gc(work).stdout

    shutil.rmtree(results)
    completed = gc(work, "--delete")
    assert completed.returncode == 0, completed.stderr
    assert f"{results} no longer exists" in completed.stdout
    # A few have the ids of the repository's own results.
    assert {p.name for p in work.glob("*-*")} < set(plan.stages)


def test_the_fix_for_a_deleted_results_folder_works(tmp_path):
    suite, plan, work, _ = world(tmp_path)
    results = tmp_path / "elsewhere" / "results"
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    shutil.rmtree(results.parent)
    assert gc(work, "--delete").returncode == 2
    done = gc(work, "--delete", "--forget", str(results))
    assert done.returncode == 0, done.stderr
    assert {p.name for p in work.glob("*-*")} < set(plan.stages)
    assert gc(work, "--forget", str(results)).returncode == 2


def test_results_in_the_work_dir_are_found_after_a_move(tmp_path):
    suite, plan, work, _ = world(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, work / "results")
    moved = work.rename(tmp_path / "moved")
    assert "unreferenced: 0 stage" in gc(moved).stdout


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"results": 3}'])
def test_a_damaged_note_keeps_everything(tmp_path, text):
    suite, plan, work, results = world(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    (note,) = (work / cited_stages.FOLDER).iterdir()
    note.write_text(text)
    completed = gc(work, "--delete")
    assert (completed.returncode, note.name in completed.stderr) == (2, True)
    assert {p.name for p in work.glob("*-*")} == set(plan.stages)

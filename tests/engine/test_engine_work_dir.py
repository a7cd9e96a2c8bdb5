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
from test_engine_collect import make_suite

from kdep_bench.engine import attempts, cited_stages, cluster, state, work_dir
from kdep_bench.engine.collect import collect
from kdep_bench.engine.lock import StageLock
from kdep_bench.errors import KdepError

REPO = Path(__file__).resolve().parents[2]


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs tools/work_dir.py."""
    return subprocess.run(
        [sys.executable, str(REPO / "tools" / "work_dir.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def prune(work: Path, results: list[Path], plans: list[fakes.Plan]) -> set[str]:
    """Removes the stages that no results folder or plan uses; returns their ids without hash."""
    planned = {i: [p.name] for p in plans for i in p.stages}
    cited = work_dir.citations(results)
    entries = work_dir.prunable(work_dir.survey(work, cited, planned), bool(cited or planned))
    assert all(work_dir.remove(work, e) for e in entries)
    assert not any((work / e.id).exists() for e in entries)
    return {e.id.rpartition("-")[0] for e in entries}


def test_survey_gives_the_size_and_state_of_every_entry(tmp_path):
    plan = fakes.diamond(b={"do": "raise"})
    fakes.run(plan, tmp_path)
    (tmp_path / "make-cut-0123456789ab").mkdir()
    (tmp_path / "notes").mkdir()
    damaged = tmp_path / fakes.id_of(plan, "c") / "stage.json"
    damaged.write_bytes(damaged.read_bytes()[:50])
    entries = {e.id: e for e in work_dir.survey(tmp_path, {}, {})}
    assert {e.state for e in entries.values()} == {"done", "failed", "interrupted", "damaged"}
    a = tmp_path / fakes.id_of(plan, "a")
    output = subprocess.run(["du", "-sb", str(a)], capture_output=True, text=True)
    folder = a.stat().st_size  # du counts the directory itself
    assert entries[a.name].bytes == int(output.stdout.split()[0]) - folder
    assert "notes" not in entries
    assert entries["make-cut-0123456789ab"].bytes == 0


def test_cited_and_planned_stages_are_kept_and_the_others_pruned(tmp_path):
    suite, plan, work, results = make_suite(tmp_path, methods=["kdep", "scratch"])
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    _, other_plan, _, _ = make_suite(tmp_path, methods=[{"base": "kdep", "transform": {"T": 0.9}}])
    assert fakes.run(other_plan, work).ok
    (work / "notes").mkdir()
    kept = set(plan.stages)
    other_ids = set(other_plan.stages) - kept
    assert prune(work, [results], [other_plan]) == set()
    removed = prune(work, [results], [])
    assert removed == {i.rpartition("-")[0] for i in other_ids}
    assert {p.name for p in work.iterdir()} >= kept | {"notes"}
    assert fakes.run(plan, work).ran == []
    assert len(fakes.run(other_plan, work).ran) == len(other_ids)


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


def test_a_superseded_record_protects_no_stage_and_a_damaged_record_stops_pruning(tmp_path):
    suite, plan, work, results = make_suite(tmp_path)
    fakes.run(plan, work)
    collect(suite, plan, work, results)
    path = next((results / "records").glob("*.json"))
    (results / "superseded").mkdir()
    complete = path.read_text()
    path.rename(results / "superseded" / path.name)
    assert path.stem not in work_dir.citations([results])
    path.write_text(complete[:200])
    with pytest.raises(KdepError, match="not valid JSON"):
        work_dir.citations([results])
    path.write_text("{}")
    with pytest.raises(KdepError, match="no valid list of stages"):
        work_dir.citations([results])


def test_pruning_without_references_is_refused(tmp_path):
    fakes.run(fakes.diamond(), tmp_path)
    with pytest.raises(KdepError, match="every stage would be removed"):
        work_dir.prunable(work_dir.survey(tmp_path, {}, {}), False)


def test_a_running_stage_is_kept_and_a_stage_locked_after_the_survey_is_skipped(tmp_path):
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


def test_links_to_folders_outside_the_work_dir_are_not_followed(tmp_path):
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


def make_cluster_run(work: Path, executor: str, *stages: str) -> Path:
    """The run directory of a cluster run whose coordinator has ended."""
    run_dir = work / ".cluster" / "toy-ab12_xyz"
    (run_dir / ".snakemake" / "slurm_logs").mkdir(parents=True)
    (run_dir / ".snakemake" / "slurm_logs" / "1.log").write_bytes(b"x" * 1000)
    content = {"stages": dict.fromkeys(stages), "executor": executor}
    (run_dir / "suite.json").write_text(json.dumps(content))
    return run_dir


def test_a_cluster_run_is_kept_while_it_or_one_of_its_stages_runs(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    run_dir = make_cluster_run(tmp_path, "snakemake-local", *plan.stages)

    def run_entry() -> work_dir.WorkDirEntry:
        (entry,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.is_cluster_run)
        return entry

    entry = run_entry()
    assert (entry.state, entry.kept_by, entry.id) == ("ended", (), ".cluster/toy-ab12_xyz")
    assert entry.bytes == 1000 + (run_dir / "suite.json").stat().st_size
    for lock in (cluster.run_lock(run_dir), StageLock(tmp_path, fakes.id_of(plan, "a"))):
        assert lock.take()
        assert run_entry().state == "running"
        assert run_entry().kept_by
        lock.free()
    lock = cluster.run_lock(run_dir)
    assert lock.take()
    assert not work_dir.remove(tmp_path, entry)  # locked since the survey
    lock.free()
    assert work_dir.remove(tmp_path, entry)
    assert not run_dir.exists()
    assert len(work_dir.survey(tmp_path, {}, {})) == len(plan.stages)


@pytest.mark.parametrize("executor", ["slurm", "kubernetes"])
def test_a_cluster_run_with_an_unreachable_queue_is_kept_until_its_stages_are_done(
    tmp_path, monkeypatch, executor
):
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    plan = fakes.diamond()
    make_cluster_run(tmp_path, executor, *plan.stages)
    (entry,) = work_dir.survey(tmp_path, {}, {})
    assert entry.state == "queued"
    assert "that this machine cannot see" in entry.kept_by[0]
    assert work_dir.prunable([entry], True) == []
    for stage_id in plan.stages:
        (tmp_path / stage_id).mkdir()
        (tmp_path / stage_id / "stage.json").write_text("{}")
    entries = work_dir.survey(tmp_path, {}, {i: ["toy"] for i in plan.stages})
    assert [e.id for e in work_dir.prunable(entries, True)] == [entry.id]


def test_a_link_is_not_listed_as_a_cluster_run(tmp_path):
    work, outside = tmp_path / "work", tmp_path / "outside"
    outside.mkdir()
    (work / ".cluster").mkdir(parents=True)
    (work / ".cluster" / "toy-ab12_xyz").symlink_to(outside)
    assert work_dir.survey(work, {}, {}) == []


def test_gc_is_a_dry_run_by_default(tmp_path):
    work, old = tmp_path / "w", "make-old-0123456789ab"
    (work / old).mkdir(parents=True)
    (work / old / "big.bin").write_bytes(b"x" * 12345)
    completed = run_tool("--work-dir", str(work))
    assert "12.3 kB" in completed.stdout
    assert "1 stage directories, 12.3 kB" in completed.stdout
    make_cluster_run(work, "snakemake-local", old)
    assert "1 stage directories and 1 cluster runs" in run_tool("--work-dir", str(work)).stdout
    dry_run = run_tool("smoke", "--work-dir", str(work), "--gc")
    stage_and_run = "1 stage directories and 1 cluster runs, 13.4 kB"
    assert f"unreferenced: {stage_and_run}; --delete removes them" in dry_run.stdout
    assert (work / old).exists()
    assert json.loads(run_tool("--work-dir", str(work), "--json").stdout)[0]["id"] == old
    deletion = run_tool("smoke", "--work-dir", str(work), "--gc", "--delete")
    assert f"removed {stage_and_run}" in deletion.stdout
    assert not (work / old).exists()
    assert list((work / ".cluster").iterdir()) == []
    assert run_tool("--work-dir", str(tmp_path / "none")).returncode == 2


@pytest.mark.parametrize("move_or_copy", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_work_dir_is_used_and_verify_detects_a_changed_file(
    tmp_path, move_or_copy
):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path / "old")
    move_or_copy(tmp_path / "old", tmp_path / "new")
    new = tmp_path / "new"
    assert all(s.done for s in state.statuses(plan, new, verify=True).values())
    (new / fakes.id_of(plan, "c") / "value.txt").write_text("999")  # same size as "101"
    assert all(s.done for s in state.statuses(plan, new).values())
    statuses = state.statuses(plan, new, verify=True)
    assert "its checksum differs" in statuses[fakes.id_of(plan, "c")].why
    outcome = fakes.local_pool.run_plan(plan, new, statuses, fakes.FAST)
    assert [i.split("-")[1] for i in outcome.ran] == ["c"]
    assert (new / fakes.id_of(plan, "c") / "value.txt").read_text() == "101"


def test_the_directory_of_a_killed_attempt_is_pruned_only_with_its_stage(tmp_path):
    plan = fakes.diamond()
    kept, removed = fakes.id_of(plan, "a"), fakes.id_of(plan, "b")
    for stage_id in (kept, removed):
        (tmp_path / stage_id).mkdir()
        attempt = attempts.begin(tmp_path, stage_id, True, lambda: True)
        (attempt.path / "half.bin").write_bytes(b"x" * 1000)
        os.close(attempt.open_log())
    unknown_attempt = tmp_path / f"{kept}.try-{'0' * 16}"
    unknown_attempt.mkdir()
    entries = {e.id: e for e in work_dir.survey(tmp_path, {}, {kept: ["p"]})}
    assert len(entries) == 5  # two stages, their two attempts, the unknown attempt
    attempt_entry = next(
        e
        for i, e in entries.items()
        if ".try-" in i and i in attempts.attempt_names(tmp_path, kept)
    )
    assert attempt_entry.kept_by == (f"the next attempt of {kept} continues from it",)
    assert attempt_entry.bytes == 1000
    chosen = work_dir.prunable(entries.values(), True)
    assert all(work_dir.remove(tmp_path, e) for e in chosen)
    remaining = [p.name for p in tmp_path.iterdir() if p.name != ".locks"]
    assert sorted(remaining) == sorted([kept, attempt_entry.id])


def run_gc(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs tools/work_dir.py --gc."""
    command = [sys.executable, str(REPO / "tools/work_dir.py"), "--work-dir", str(work), "--gc"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_stages_cited_by_results_in_other_folders_are_kept(tmp_path):
    suite, plan, work, _ = make_suite(tmp_path)
    results = tmp_path / "elsewhere" / "results"
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    collect(suite, plan, work, results)  # may not note the folder a second time
    assert [r.results for r in cited_stages.citing_folders(work)] == [results]
    completed = run_gc(work, "--delete")
    assert completed.returncode == 0, completed.stderr
    assert {p.name for p in work.glob("*-*")} == set(plan.stages)

    hidden = results.parent.rename(tmp_path / "unmounted")
    completed = run_gc(work)
    assert completed.returncode == 0
    assert f"{results} no longer exists" in completed.stdout
    completed = run_gc(work, "--delete")
    assert completed.returncode == 2
    assert f"--forget {results}" in completed.stderr
    assert {p.name for p in work.glob("*-*")} == set(plan.stages)
    hidden.rename(results.parent)
    assert "unreferenced: 0 stage" in run_gc(work).stdout

    shutil.rmtree(results)
    completed = run_gc(work, "--delete")
    assert completed.returncode == 0, completed.stderr
    assert f"{results} no longer exists" in completed.stdout
    # Some remain: the repository's own results cite stages of the same ids.
    assert {p.name for p in work.glob("*-*")} < set(plan.stages)


def test_the_fix_for_a_deleted_results_folder_works(tmp_path):
    suite, plan, work, _ = make_suite(tmp_path)
    results = tmp_path / "elsewhere" / "results"
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    shutil.rmtree(results.parent)
    assert run_gc(work, "--delete").returncode == 2
    done = run_gc(work, "--delete", "--forget", str(results))
    assert done.returncode == 0, done.stderr
    assert {p.name for p in work.glob("*-*")} < set(plan.stages)
    assert run_gc(work, "--forget", str(results)).returncode == 2


def test_results_in_the_work_dir_are_found_after_a_move(tmp_path):
    suite, plan, work, _ = make_suite(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, work / "results")
    moved = work.rename(tmp_path / "moved")
    assert "unreferenced: 0 stage" in run_gc(moved).stdout


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"results": 3}'])
def test_nothing_is_pruned_if_the_note_of_a_results_folder_is_damaged(tmp_path, text):
    suite, plan, work, results = make_suite(tmp_path)
    assert fakes.run(plan, work).ok
    collect(suite, plan, work, results)
    (note,) = (work / cited_stages.FOLDER).iterdir()
    note.write_text(text)
    completed = run_gc(work, "--delete")
    assert (completed.returncode, note.name in completed.stderr) == (2, True)
    assert {p.name for p in work.glob("*-*")} == set(plan.stages)

"""Plans run by Snakemake on a real Slurm of three nodes, with failures of nodes, jobs and runs."""

from __future__ import annotations

import itertools
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cluster_fakes
import engine_fakes as fakes
import pytest
from slurm import QUICK, Slurm, wait_for

from kdep_bench.engine import cluster, local_pool, stage, state, work_dir
from kdep_bench.files import read_json
from kdep_bench.suite.graph import Plan, add_stage

SLURM = cluster.ClusterOptions("slurm", extra_arguments=QUICK)


def run(plan: Plan, work: Path, options: cluster.ClusterOptions = SLURM) -> local_pool.Outcome:
    """Runs the plan through Snakemake, by default on Slurm."""
    return cluster.run_plan(plan, work, state.statuses(plan, work), options)


def record(plan: Plan, work: Path, name: str) -> dict:
    """The content of stage.json of the stage of this name."""
    return read_json(work / fakes.id_of(plan, name) / "stage.json")


def values(plan: Plan, work: Path) -> dict[str, object]:
    """The output `value` of every stage, by stage id."""
    return {i: read_json(work / i / "stage.json")["outputs"]["value"] for i in plan.stages}


def start_coordinator(work: Path, expression: str) -> subprocess.Popen[str]:
    """Starts a run in a separate process, which a test can kill; `expression` makes the plan."""
    code = (
        "import sys; from pathlib import Path; from engine_fakes import *; import test_slurm as t\n"
        "from cluster_fakes import KINDS\n"
        f"outcome = t.run({expression}, Path({str(work)!r}))\n"
        "print(outcome); sys.exit(128 + outcome.signal if outcome.signal else not outcome.ok)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def sbatch(plan: Plan, work: Path, name: str, *options: str) -> str:
    """Submits one stage by sbatch, without Snakemake; returns the job id."""
    work.mkdir(exist_ok=True)
    stage.write_plan(work / "plan.json", plan.name, plan.stages.values())
    stage_command = [
        *(sys.executable, "-m", "kdep_bench.engine.stage", "--plan", str(work / "plan.json")),
        *("--stage", fakes.id_of(plan, name), "--work-dir", str(work)),
    ]
    wrapped = shlex.join(stage_command)
    if "--nodes=2" not in options:  # on several nodes the stage command itself starts srun
        wrapped = f"srun --ntasks=1 {wrapped}"
    command = ["sbatch", "--parsable", f"--output={work}/job-%j.log", "--open-mode=append"]
    command += [*options, "--wrap", wrapped]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return completed.stdout.strip()


def plan_of_steps(steps: int, sleep: float, **runtime: Any) -> Plan:
    """A plan of one resumable stage "g" of `steps` steps, with `sleep` seconds after each."""
    plan = Plan("grow")
    spec = {"steps": steps, "sleep": sleep}
    add_stage(plan, "grow", "g", spec, None, kinds=fakes.KINDS, function=None, **runtime)
    return plan


def names(stage_ids: Iterable[str]) -> list[str]:
    """The sorted names in stage ids (kind-name-hash)."""
    return sorted(stage_id.split("-")[1] for stage_id in stage_ids)


def read_words(path: Path) -> list[str]:
    """The words of a file; an empty list if the file does not exist."""
    return path.read_text().split() if path.exists() else []


# --- complete plans ------------------------------------------------------------------------------


def test_slurm_and_local_runs_give_equal_outputs_and_continue_each_other(slurm: Slurm, tmp_path):
    plan = fakes.diamond()
    assert fakes.run(plan, tmp_path / "here").ok
    outcome = run(plan, tmp_path / "slurm")
    assert outcome.ok, outcome
    assert sorted(outcome.ran) == sorted(plan.stages)
    assert values(plan, tmp_path / "slurm") == values(plan, tmp_path / "here")
    assert record(plan, tmp_path / "slurm", "d")["outputs"]["threads"] == 1
    assert run(plan, tmp_path / "here").ran == []  # finished locally, so Slurm runs nothing

    # Stages a and b on Slurm, c by Snakemake on this machine, d by the local pool.
    work = tmp_path / "mixed"
    local = cluster.ClusterOptions("snakemake-local")
    for target, options, expected_names in (("b", SLURM, ["a", "b"]), ("c", local, ["c"])):
        requested = plan.upstream([fakes.id_of(plan, target)])
        statuses = state.statuses(plan, work, requested)
        outcome = cluster.run_plan(plan, work, statuses, options)
        assert names(outcome.ran) == expected_names, outcome
    assert fakes.run(plan, work).ran == [fakes.id_of(plan, "d")]
    assert values(plan, work) == values(plan, tmp_path / "here")
    assert Counter(fakes.traced(work)) == Counter("abcd")
    assert not list(work.glob(".cluster/*"))  # folders of successful runs are removed


def test_a_failing_stage_skips_only_its_dependents(slurm: Slurm, tmp_path):
    plan = fakes.diamond(b={"do": "kdep"})
    outcome = run(plan, tmp_path)
    b, d = fakes.id_of(plan, "b"), fakes.id_of(plan, "d")
    assert set(outcome.failed) == {b}
    assert "a wrong thing" in outcome.failed[b]
    assert outcome.skipped == {d: f"skipped, because {b} failed"}
    assert names(outcome.ran) == ["a", "c"]
    # A stage that is killed cannot report its failure itself.
    plan = fakes.diamond(b={"do": "kill"})
    outcome = run(plan, tmp_path)
    assert "ended without a result" in outcome.failed[fakes.id_of(plan, "b")]
    assert fakes.id_of(plan, "d") in outcome.skipped


def test_forced_stages_run_again(slurm: Slurm, tmp_path):
    plan = fakes.chain(2)
    assert fakes.run(plan, tmp_path).ok
    statuses = state.statuses(plan, tmp_path, force=lambda s: s.name == "w0k1")
    outcome = cluster.run_plan(plan, tmp_path, statuses, SLURM)
    assert outcome.ran == [fakes.id_of(plan, "w0k1")]
    assert fakes.traced(tmp_path) == ["w0k0", "w0k1", "w0k1"]


def test_stages_that_run_at_once_on_a_node_have_different_gpus(slurm: Slurm, tmp_path):
    plan = Plan("gpus")
    for k in range(4):
        add_stage(plan, "gpu", f"g{k}", {"k": k, "sleep": 8.0}, kinds=cluster_fakes.KINDS)
    add_stage(plan, "make", "none", {}, kinds=fakes.KINDS)
    assert run(plan, tmp_path).ok
    outputs = [record(plan, tmp_path, f"g{k}")["outputs"] for k in range(4)]
    assert all(output["gpus"] in ("0", "1") for output in outputs)
    for a, b in itertools.combinations(outputs, 2):
        (a_begin, a_end), (b_begin, b_end) = a["span"], b["span"]
        if a_begin < b_end and b_begin < a_end:  # they ran at the same time
            assert (a["node"], a["gpus"]) != (b["node"], b["gpus"])


# --- lost nodes, killed runs, preemption, time limits --------------------------------------------


def test_a_stage_on_a_lost_node_is_requeued_and_resumes(slurm: Slurm, tmp_path):
    process = start_coordinator(tmp_path, "t.plan_of_steps(120, 0.25)")
    plan = plan_of_steps(120, 0.25)
    out = tmp_path / fakes.id_of(plan, "g")
    wait_for(lambda: fakes.steps(tmp_path, out.name) > 8, 400, "a running stage")
    (job,) = slurm.jobs("running")
    node = slurm.job(job)["NodeList"]
    slurm.node_down(node)
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        slurm.node_up(node)
    assert process.returncode == 0, output
    assert slurm.job(job)["Restarts"] == "1"
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 8
    assert read_words(out / "steps.txt") == [str(k) for k in range(120)]
    wait_for(lambda: slurm.count_idle() == len(slurm.names), 400, "all nodes again")


def test_jobs_of_a_killed_coordinator_continue_and_no_stage_runs_twice(slurm: Slurm, tmp_path):
    expression = "chain(2, width=2, do='wait')"
    process = start_coordinator(tmp_path, expression)
    wait_for(lambda: len(fakes.traced(tmp_path)) == 2, 400, "two running stages")
    process.kill()
    process.wait()
    wait_for(lambda: not snakemakes(tmp_path), 100, "the end of its Snakemake")
    assert len(slurm.jobs()) == 2  # the jobs continue without their coordinator
    (run_entry,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.is_cluster_run)
    assert run_entry.state == "running"  # while one of its stages runs
    restarted = start_coordinator(tmp_path, expression)
    wait_for(lambda: len(slurm.jobs("pending")) == 2, 400, "jobs that wait for the running ones")
    assert all("afterany" in slurm.job(j)["Dependency"] for j in slurm.jobs("pending"))
    (tmp_path / "go").touch()
    output, _ = restarted.communicate(timeout=900)
    assert restarted.returncode == 0, output
    ran = Counter(fakes.traced(tmp_path))
    assert ran == Counter(["w0k0", "w0k1", "w1k0", "w1k1"])


def snakemakes(work: Path) -> list[str]:
    """Process ids of the Snakemakes that coordinate a work dir (not those inside its jobs)."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode().split("\0")
            in_job = b"SLURM_JOB_ID=" in (process / "environ").read_bytes()
        except OSError:
            continue
        of_this_work_dir = any(str(work) in argument for argument in arguments)
        if not in_job and "--executor" in arguments and of_this_work_dir:
            pids.append(process.name)
    return pids


def test_two_coordinators_at_once_run_each_stage_once(slurm: Slurm, tmp_path):
    expression = "chain(1, width=3, sleep=5)"
    coordinators = [start_coordinator(tmp_path, expression) for _ in range(2)]
    for process in coordinators:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    assert Counter(fakes.traced(tmp_path)) == Counter(["w0k0", "w1k0", "w2k0"])


def test_an_interrupt_cancels_the_jobs_and_a_rerun_resumes(slurm: Slurm, tmp_path):
    process = start_coordinator(tmp_path, "t.plan_of_steps(200, 0.25)")
    plan = plan_of_steps(200, 0.25)
    out = tmp_path / fakes.id_of(plan, "g")
    wait_for(lambda: fakes.steps(tmp_path, out.name) > 4, 400, "a running stage")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT, output
    wait_for(lambda: not slurm.jobs(), 200, "no job left")
    assert not (out / "failed.json").exists()
    assert run(plan, tmp_path).ok
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 4


def test_a_preempted_stage_is_requeued_and_resumes(slurm: Slurm, tmp_path):
    plan = plan_of_steps(160, 0.25)
    out = tmp_path / fakes.id_of(plan, "g")
    whole_node = ("--exclusive", "--nodelist=kdepn1")
    job = sbatch(plan, tmp_path, "g", "--requeue", "--signal=TERM@30", "-t10", *whole_node)
    wait_for(lambda: fakes.steps(tmp_path, out.name) > 4, 400, "a running stage")
    subprocess.run(
        ["sbatch", "-phigh", "-t5", *whole_node, f"--output={tmp_path}/high", "--wrap", "sleep 5"],
        check=True,
        capture_output=True,
    )
    wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", 600, "the end")
    assert slurm.job(job)["Restarts"] == "1"
    assert "--- requeued" in (out / "stage.log").read_text()
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 4
    assert read_words(out / "steps.txt") == [str(k) for k in range(160)]


def test_a_stage_resumes_in_another_job_after_the_time_limit(slurm: Slurm, tmp_path):
    # 420 steps take 105 s; Slurm's signal comes 30 to 90 s before the time limit of 120 s.
    plan = plan_of_steps(420, 0.25, time=120.0, timeout=1000.0)
    outcome = run(plan, tmp_path)
    assert outcome.ok, outcome
    out = tmp_path / fakes.id_of(plan, "g")
    assert "--- requeued" in (out / "stage.log").read_text()
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 10
    assert read_words(out / "steps.txt") == [str(k) for k in range(420)]


# --- a single stage; several processes -----------------------------------------------------------


def test_a_stage_submitted_by_sbatch_checks_its_inputs(slurm: Slurm, tmp_path):
    plan = fakes.diamond()
    job = sbatch(plan, tmp_path, "a")
    wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", 400, "the job")
    # Slurm treats a dependency on an unknown job as fulfilled, so the stage checks its inputs.
    job = sbatch(plan, tmp_path, "d", "--dependency=afterok:999999")
    wait_for(lambda: slurm.job(job)["JobState"] == "FAILED", 400, "the other job")
    assert "is damaged: it has no stage.json" in (tmp_path / f"job-{job}.log").read_text()
    assert names(run(plan, tmp_path).ran) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("nodes", "processes", "gpus"), [(1, 2, 2), (2, 1, 1), (2, 2, 2)], ids=["1x2", "2x1", "2x2"]
)
def test_ddp_ranks_average_gradients_on_different_gpus(
    slurm: Slurm, tmp_path, nodes, processes, gpus
):
    plan = Plan("ddp")
    runtime = dict(nodes=nodes, processes=processes, gpus=gpus)
    add_stage(plan, "ddp", "d", {"steps": 8}, kinds=cluster_fakes.KINDS, **runtime)
    add_stage(plan, "make", "after", {}, {"x": fakes.id_of(plan, "d")}, kinds=fakes.KINDS)
    outcome = run(plan, tmp_path)
    assert outcome.ok, outcome
    content = record(plan, tmp_path, "d")
    assert content["outputs"]["world"] == content["environment"]["processes"] == nodes * processes
    assert content["outputs"]["w"] == pytest.approx(cluster_fakes.expected_weight(8), abs=1e-12)
    out = tmp_path / fakes.id_of(plan, "d")
    ranks = [read_json(out / f"who-{r}.json") for r in range(nodes * processes)]
    assert len({rank["SLURMD_NODENAME"] for rank in ranks}) == nodes
    # Every process of a node sees the node's GPUs and uses the GPU of its local rank.
    used_gpus = set()
    for rank in ranks:
        visible = rank["CUDA_VISIBLE_DEVICES"].split(",")
        used_gpus.add((rank["SLURMD_NODENAME"], visible[int(rank["LOCAL_RANK"])]))
    assert len(used_gpus) == nodes * processes


def test_ddp_over_two_nodes_by_sbatch_resumes_after_a_node_is_lost(slurm: Slurm, tmp_path):
    plan = Plan("ddp")
    spec = {"steps": 160, "sleep": 0.25}
    add_stage(plan, "ddp", "d", spec, kinds=cluster_fakes.KINDS, nodes=2)
    out = tmp_path / fakes.id_of(plan, "d")
    job = sbatch(plan, tmp_path, "d", "--nodes=2", "--ntasks-per-node=1", "--requeue", "-t20")

    def steps_done() -> int:
        return read_json(out / "w.json")[0] if (out / "w.json").exists() else 0

    wait_for(lambda: steps_done() > 8, 400, "steps")
    second_node = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[1]
    slurm.node_down(second_node)
    try:  # Slurm requeues the job on the remaining two nodes
        wait_for(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED"), 900, "the end")
    finally:
        slurm.node_up(second_node)
    assert slurm.job(job)["JobState"] == "COMPLETED"
    assert slurm.job(job)["Restarts"] == "1"
    outputs = record(plan, tmp_path, "d")["outputs"]
    assert outputs["resumed_at"] > 8
    assert outputs["w"] == pytest.approx(cluster_fakes.expected_weight(160), abs=1e-12)
    wait_for(lambda: slurm.count_idle() == len(slurm.names), 400, "all nodes again")


def test_snakemake_on_this_machine_needs_no_slurm(snakemake: str, tmp_path):
    local = cluster.ClusterOptions("snakemake-local")
    outcome = run(fakes.diamond(b={"do": "raise"}), tmp_path, local)
    assert len(outcome.failed) == len(outcome.skipped) == 1
    (run_entry,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.is_cluster_run)
    assert (run_entry.state, run_entry.kept_by) == ("ended", ())
    assert work_dir.remove(tmp_path, run_entry)
    assert len(run(fakes.diamond(), tmp_path, local).ran) == 2  # b and d; a and c are done

"""Suites through Snakemake on a real Slurm of three nodes, and what breaks there."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cluster_fakes
import engine_fakes as fakes
import pytest
from slurm import QUICK, Slurm, wait_for

from kdep_bench.engine import cluster, local_pool, stage, state, work_dir
from kdep_bench.files import read_json
from kdep_bench.suite.graph import Plan, add_stage

HERE = Path(__file__).resolve().parent
SLURM = cluster.ClusterOptions("slurm", extra_arguments=QUICK)


def run(plan: Plan, work: Path, options: cluster.ClusterOptions = SLURM) -> local_pool.Outcome:
    return cluster.run_plan(plan, work, state.statuses(plan, work), options)


def record(plan: Plan, work: Path, name: str) -> dict:
    return read_json(work / fakes.id_of(plan, name) / "stage.json")


def results(plan: Plan, work: Path) -> dict[str, object]:
    return {i: read_json(work / i / "stage.json")["outputs"]["value"] for i in plan.stages}


def coordinator(work: Path, expression: str) -> subprocess.Popen[str]:
    """A run in a process of its own, to be killed. `expression` makes the plan."""
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
    """A plain sbatch of one stage; returns the job."""
    work.mkdir(exist_ok=True)
    stage.write_plan(work / "plan.json", plan.name, plan.stages.values())
    command = [sys.executable, "-m", "kdep_bench.engine.stage", "--plan", str(work / "plan.json")]
    command += ["--stage", fakes.id_of(plan, name), "--work-dir", str(work)]
    wrapped = shlex.join(command)
    if "--nodes=2" not in options:
        wrapped = f"srun --ntasks=1 {wrapped}"
    completed = subprocess.run(
        [
            *("sbatch", "--parsable", f"--output={work}/job-%j.log", "--open-mode=append"),
            *(*options, "--wrap", wrapped),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return completed.stdout.strip()


def grown(steps: int, sleep: float, **runtime: float) -> Plan:
    plan = Plan("grow")
    spec = {"steps": steps, "sleep": sleep}
    add_stage(plan, "grow", "g", spec, None, kinds=fakes.KINDS, function=None, **runtime)
    return plan


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def begun(work: Path, name: str) -> Callable[[], bool]:
    return lambda: name in fakes.traced(work)


# --- whole suites --------------------------------------------------------------------------------


def test_a_suite_ends_as_it_does_here_and_runs_may_be_mixed(slurm: Slurm, tmp_path):
    plan = fakes.diamond()
    assert fakes.run(plan, tmp_path / "here").ok
    outcome = run(plan, tmp_path / "slurm")
    assert outcome.ok, outcome
    assert sorted(outcome.ran) == sorted(plan.stages)
    assert results(plan, tmp_path / "slurm") == results(plan, tmp_path / "here")
    assert record(plan, tmp_path / "slurm", "d")["outputs"]["threads"] == 1
    assert run(plan, tmp_path / "here").ran == []  # what was done here is done there

    # A part on Slurm, the next by Snakemake on this machine, the rest by the pool.
    work = tmp_path / "mixed"
    first, second = plan.upstream([fakes.id_of(plan, "b")]), plan.upstream([fakes.id_of(plan, "c")])
    for expected, options, ran in ((first, SLURM, "ab"), (second, None, "c")):
        known = state.statuses(plan, work, expected)
        options = options or cluster.ClusterOptions("snakemake-local")
        outcome = cluster.run_plan(plan, work, known, options)
        assert sorted(i.split("-")[1] for i in outcome.ran) == sorted(ran), outcome
    assert fakes.run(plan, work).ran == [fakes.id_of(plan, "d")]
    assert results(plan, work) == results(plan, tmp_path / "here")
    assert Counter(fakes.traced(work)) == Counter("abcd")
    assert not list(work.glob(".cluster/*"))  # folders of successful runs are removed


def test_a_failing_stage_skips_only_its_dependents(slurm: Slurm, tmp_path):
    plan = fakes.diamond(b={"do": "kdep"})
    outcome = run(plan, tmp_path)
    b, d = fakes.id_of(plan, "b"), fakes.id_of(plan, "d")
    assert set(outcome.failed) == {b}
    assert "a wrong thing" in outcome.failed[b]
    assert outcome.skipped == {d: f"skipped, because {b} failed"}
    assert sorted(i.split("-")[1] for i in outcome.ran) == ["a", "c"]
    # A stage that is killed says nothing itself.
    plan = fakes.diamond(b={"do": "kill"})
    outcome = run(plan, tmp_path)
    assert "ended without a result" in outcome.failed[fakes.id_of(plan, "b")]
    assert fakes.id_of(plan, "d") in outcome.skipped


def test_forced_stages_run_again(slurm: Slurm, tmp_path):
    plan = fakes.chain(2)
    assert fakes.run(plan, tmp_path).ok
    known = state.statuses(plan, tmp_path, force=lambda s: s.name == "w0k1")
    outcome = cluster.run_plan(plan, tmp_path, known, SLURM)
    assert outcome.ran == [fakes.id_of(plan, "w0k1")]
    assert fakes.traced(tmp_path) == ["w0k0", "w0k1", "w0k1"]


def test_gpus_of_a_node_are_distinct(slurm: Slurm, tmp_path):
    plan = Plan("gpus")
    for k in range(4):
        add_stage(plan, "gpu", f"g{k}", {"k": k, "sleep": 8.0}, kinds=cluster_fakes.KINDS)
    add_stage(plan, "make", "none", {}, kinds=fakes.KINDS)
    assert run(plan, tmp_path).ok
    got = [record(plan, tmp_path, f"g{k}")["outputs"] for k in range(4)]
    for one in got:
        assert one["gpus"] in ("0", "1")
        for other in got:
            together = one["span"][0] < other["span"][1] and other["span"][0] < one["span"][1]
            if one is not other and together:
                assert (one["node"], one["gpus"]) != (other["node"], other["gpus"])


# --- what breaks ---------------------------------------------------------------------------------


def test_a_lost_node_s_stage_is_requeued_and_resumes(slurm: Slurm, tmp_path):
    process = coordinator(tmp_path, "t.grown(120, 0.25)")
    plan = grown(120, 0.25)
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
    assert lines(out / "steps.txt") == [str(k) for k in range(120)]
    wait_for(lambda: slurm.idle() == len(slurm.names), 400, "all nodes again")


def test_a_killed_coordinator_loses_nothing_and_nothing_is_done_twice(slurm: Slurm, tmp_path):
    expression = "chain(2, width=2, do='wait')"
    process = coordinator(tmp_path, expression)
    wait_for(lambda: len(fakes.traced(tmp_path)) == 2, 400, "two running stages")
    process.kill()
    process.wait()
    wait_for(lambda: not snakemakes(tmp_path), 100, "the end of its Snakemake")
    assert len(slurm.jobs()) == 2  # they go on
    (left,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.is_run)
    assert left.state == "running"  # a stage of it is: its plan is read when the next one starts
    again = coordinator(tmp_path, expression)
    wait_for(lambda: len(slurm.jobs("pending")) == 2, 400, "jobs that wait for those")
    assert all("afterany" in slurm.job(j)["Dependency"] for j in slurm.jobs("pending"))
    (tmp_path / "go").touch()
    output, _ = again.communicate(timeout=900)
    assert again.returncode == 0, output
    ran = Counter(fakes.traced(tmp_path))
    assert ran == Counter(["w0k0", "w0k1", "w1k0", "w1k1"])


def snakemakes(work: Path) -> list[str]:
    """Coordinating Snakemakes of a work dir (not those inside its jobs)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            inside = b"SLURM_JOB_ID=" in (process / "environ").read_bytes()
        except OSError:
            continue
        if not inside and "--executor" in words and any(str(work) in w for w in words):
            found.append(process.name)
    return found


def test_two_coordinators_at_once_do_no_stage_twice(slurm: Slurm, tmp_path):
    expression = "chain(1, width=3, sleep=5)"
    both = [coordinator(tmp_path, expression) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    assert Counter(fakes.traced(tmp_path)) == Counter(["w0k0", "w1k0", "w2k0"])


def test_an_interrupt_cancels_the_jobs_and_a_rerun_resumes(slurm: Slurm, tmp_path):
    process = coordinator(tmp_path, "t.grown(200, 0.25)")
    plan = grown(200, 0.25)
    out = tmp_path / fakes.id_of(plan, "g")
    wait_for(lambda: fakes.steps(tmp_path, out.name) > 4, 400, "a running stage")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    wait_for(lambda: not slurm.jobs(), 200, "no job left")
    assert not (out / "failed.json").exists()
    assert run(plan, tmp_path).ok
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 4


def test_a_preempted_stage_is_requeued_and_resumes(slurm: Slurm, tmp_path):
    plan = grown(160, 0.25)
    out = tmp_path / fakes.id_of(plan, "g")
    all_of_it = ("--exclusive", "--nodelist=kdepn1")
    job = sbatch(plan, tmp_path, "g", "--requeue", "--signal=TERM@30", "-t10", *all_of_it)
    wait_for(lambda: fakes.steps(tmp_path, out.name) > 4, 400, "a running stage")
    subprocess.run(
        ["sbatch", "-phigh", "-t5", *all_of_it, f"--output={tmp_path}/high", "--wrap", "sleep 5"],
        check=True,
        capture_output=True,
    )
    wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", 600, "the end")
    assert slurm.job(job)["Restarts"] == "1"
    assert "back to the queue" in (out / "stage.log").read_text()
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 4
    assert lines(out / "steps.txt") == [str(k) for k in range(160)]


def test_a_stage_resumes_in_another_job_after_the_time_limit(slurm: Slurm, tmp_path):
    plan = grown(420, 0.25, time=120.0, timeout=1000.0)  # 105 s; the notice comes 30 to 90 s early
    outcome = run(plan, tmp_path)
    assert outcome.ok, outcome
    out = tmp_path / fakes.id_of(plan, "g")
    assert "back to the queue" in (out / "stage.log").read_text()
    assert record(plan, tmp_path, "g")["outputs"]["resumed_at"] > 10
    assert lines(out / "steps.txt") == [str(k) for k in range(420)]


# --- a single stage, and several processes -------------------------------------------------------


def test_a_plain_sbatch_of_one_stage(slurm: Slurm, tmp_path):
    plan = fakes.diamond()
    job = sbatch(plan, tmp_path, "a")
    wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", 400, "the job")
    # Slurm takes any job for done that it does not know: the stage looks at its inputs itself.
    job = sbatch(plan, tmp_path, "d", "--dependency=afterok:999999")
    wait_for(lambda: slurm.job(job)["JobState"] == "FAILED", 400, "the other job")
    assert "is damaged: it has no stage.json" in (tmp_path / f"job-{job}.log").read_text()
    assert sorted(i.split("-")[1] for i in run(plan, tmp_path).ran) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("nodes", "processes", "gpus"), [(1, 2, 2), (2, 1, 1), (2, 2, 2)], ids=["1x2", "2x1", "2x2"]
)
def test_ddp(slurm: Slurm, tmp_path, nodes, processes, gpus):
    plan = Plan("ddp")
    runtime = dict(nodes=nodes, processes=processes, gpus=gpus)
    add_stage(plan, "ddp", "d", {"steps": 8}, kinds=cluster_fakes.KINDS, **runtime)
    add_stage(plan, "make", "after", {}, {"x": fakes.id_of(plan, "d")}, kinds=fakes.KINDS)
    outcome = run(plan, tmp_path)
    assert outcome.ok, outcome
    made = record(plan, tmp_path, "d")
    assert made["outputs"]["world"] == made["environment"]["processes"] == nodes * processes
    assert made["outputs"]["w"] == pytest.approx(cluster_fakes.expected(8), abs=1e-12)
    out = tmp_path / fakes.id_of(plan, "d")
    who = [read_json(out / f"who-{r}.json") for r in range(nodes * processes)]
    assert len({w["SLURMD_NODENAME"] for w in who}) == nodes
    # Every process of a node sees the node's GPUs and takes the one of its local rank.
    own = {
        (w["SLURMD_NODENAME"], w["CUDA_VISIBLE_DEVICES"].split(",")[int(w["LOCAL_RANK"])])
        for w in who
    }
    assert len(own) == nodes * processes


def test_ddp_over_two_nodes_by_plain_sbatch_survives_the_loss_of_one(slurm: Slurm, tmp_path):
    plan = Plan("ddp")
    spec = {"steps": 160, "sleep": 0.25}
    add_stage(plan, "ddp", "d", spec, kinds=cluster_fakes.KINDS, nodes=2)
    out = tmp_path / fakes.id_of(plan, "d")
    job = sbatch(plan, tmp_path, "d", "--nodes=2", "--ntasks-per-node=1", "--requeue", "-t20")

    def steps() -> int:
        return read_json(out / "w.json")[0] if (out / "w.json").exists() else 0

    wait_for(lambda: steps() > 8, 400, "steps")
    lost = slurm.ask("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[1]
    slurm.node_down(lost)
    try:  # the third node takes its place
        wait_for(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED"), 900, "the end")
    finally:
        slurm.node_up(lost)
    assert slurm.job(job)["JobState"] == "COMPLETED"
    assert slurm.job(job)["Restarts"] == "1"
    got = record(plan, tmp_path, "d")["outputs"]
    assert got["resumed_at"] > 8
    assert got["w"] == pytest.approx(cluster_fakes.expected(160), abs=1e-12)
    wait_for(lambda: slurm.idle() == len(slurm.names), 400, "all nodes again")


def test_snakemake_on_this_machine_needs_no_slurm(snakemake: str, tmp_path):
    here = cluster.ClusterOptions("snakemake-local")
    outcome = run(fakes.diamond(b={"do": "raise"}), tmp_path, here)
    assert len(outcome.failed) == len(outcome.skipped) == 1
    (left,) = (e for e in work_dir.survey(tmp_path, {}, {}) if e.is_run)
    assert (left.state, left.kept_by) == ("ended", ())
    assert work_dir.remove(tmp_path, left)
    assert len(run(fakes.diamond(), tmp_path, here).ran) == 2  # b and d: the others are done

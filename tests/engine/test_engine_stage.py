"""The stage command: plan files, exit codes, signals, GPUs, DDP on one machine."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import engine_fakes as fakes
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cluster"))
import cluster_fakes  # noqa: E402
from cluster_fakes import ddp  # noqa: E402

from kdep_bench.cli import run_suite  # noqa: E402
from kdep_bench.engine import attempts, cluster, stage, stage_process, state  # noqa: E402
from kdep_bench.engine.ddp import leave_launcher  # noqa: E402
from kdep_bench.engine.progress import Silent  # noqa: E402
from kdep_bench.errors import KdepError  # noqa: E402
from kdep_bench.files import read_json  # noqa: E402
from kdep_bench.suite.config import load_suite  # noqa: E402
from kdep_bench.suite.graph import Plan, add_stage  # noqa: E402
from kdep_bench.suite.plan import build_plan  # noqa: E402

REPO = HERE.parents[1]


def start_stage(plan: Plan, work: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts the stage command for one stage of the plan."""
    work.mkdir(exist_ok=True)
    if not (work / "plan.json").exists():
        stage.write_plan(work / "plan.json", plan.name, plan.stages.values())
    path = os.pathsep.join(str(p) for p in (REPO, HERE, HERE.parent / "cluster"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    command = [sys.executable, "-m", "kdep_bench.engine.stage", "--plan", str(work / "plan.json")]
    command += ["--stage", fakes.id_of(plan, name), "--work-dir", str(work), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env | {"PYTHONPATH": path},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for the end; returns exit code and output."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def wait_for(condition, seconds: float = 60.0) -> None:
    """Polls until `condition()` is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {seconds} s"
        time.sleep(0.05)


def outputs(plan: Plan, work: Path, name: str) -> dict:
    """The outputs of a finished stage."""
    return read_json(work / fakes.id_of(plan, name) / "stage.json")["outputs"]


# --- plans ---------------------------------------------------------------------------------------


def test_a_written_plan_is_read_back_unchanged(tmp_path):
    plan = build_plan(load_suite("smoke"))
    stage.write_plan(tmp_path / "p.json", plan.name, plan.stages.values())
    for stage_id, planned in plan.stages.items():
        read_back, _ = stage.read_stage(tmp_path / "p.json", stage_id)
        assert replace(read_back, trackers=tuple(read_back.trackers)) == replace(
            planned, trackers=tuple(planned.trackers)
        )


def test_a_changed_plan_is_refused(tmp_path):
    plan = fakes.diamond()
    path = tmp_path / "p.json"
    stage.write_plan(path, plan.name, plan.stages.values())
    stage_id = fakes.id_of(plan, "a")
    content = read_json(path)
    content["stages"][0]["spec"]["value"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(KdepError, match="has the content of make-a-"):
        stage.read_stage(path, stage_id)
    content["stages"][0]["timeout"] = "soon"
    path.write_text(json.dumps(content))
    with pytest.raises(KdepError, match="wrong timeout"):
        stage.read_stage(path, stage_id)
    with pytest.raises(KdepError, match="unknown stage"):
        stage.read_stage(path, "make-z-000000000000")


def test_runtime_options_do_not_change_stage_ids():
    suite = load_suite("smoke")
    runtime = suite.runtime.model_copy(
        update={"memory": {"pretrain": 99}, "time": {"cache": 60.0}, "gpus": {"cache": 1}}
    )
    other = build_plan(suite.model_copy(update={"runtime": runtime}))
    assert list(other.stages) == list(build_plan(suite).stages)
    assert {s.memory for s in other.stages.values() if s.kind == "pretrain"} == {99}
    assert {s.time for s in other.stages.values() if s.kind == "cache"} == {60.0}


@pytest.mark.parametrize("option", ["gpus", "processes", "nodes"])
def test_several_processes_are_refused_for_a_stage_kind_that_runs_as_one_process(option):
    suite = load_suite("smoke")
    runtime = suite.runtime.model_copy(update={option: {"export": 2}})
    with pytest.raises(KdepError, match="2 processes per export stage"):
        build_plan(suite.model_copy(update={"runtime": runtime}))
    suite = suite.model_copy(
        update={"runtime": suite.runtime.model_copy(update={option: {"exprt": 2}})}  # misspelt
    )
    with pytest.raises(KdepError, match=f"in runtime.{option}"):
        build_plan(suite)


def test_a_stage_s_resources_are_requested_from_the_cluster():
    plan = Plan("rows")
    add_stage(plan, "ddp", "two", {"steps": 1}, kinds=cluster_fakes.KINDS, nodes=2, gpus=4, cpus=3)
    add_stage(plan, "make", "wide", {}, kinds=fakes.KINDS, cpus=0, time=240.0)
    two, wide = plan.stages.values()
    row = cluster.snakefile_entry(two, cluster.ClusterOptions("slurm"), ["7", "8"])
    assert row["token"] == f"done/nodes/{two.id}"
    assert (row["nodes"], row["threads"], row["gres"]) == (2, 12, "gpu:4")
    assert (row["mem_mb"], row["runtime"]) == (4 * 800, 10)  # 800 MB per process; minutes
    assert "--dependency=afterany:7:8" in row["slurm_extra"]
    row = cluster.snakefile_entry(wide, cluster.ClusterOptions("slurm"))
    four_minutes = 4
    without_gpu = ("", 0)  # gres, gpu
    assert (row["threads"], row["runtime"]) == (cluster.CORES_OF_WHOLE_MACHINE, four_minutes)
    assert (row["gres"], row["gpu"]) == without_gpu
    assert "--signal=TERM@60" in row["slurm_extra"]
    local_row = cluster.snakefile_entry(two, cluster.ClusterOptions("snakemake-local", gpus=("0",)))
    assert (local_row["nodes"], local_row["gpu"], local_row["gres"], local_row["slurm_extra"]) == (
        1,
        4,
        "",
        "",
    )


@pytest.mark.parametrize("without_gpus", [False, True])
def test_the_option_without_gpus_requests_no_gpus(tmp_path, without_gpus):
    plan = Plan("rows")
    add_stage(plan, "ddp", "two", {"steps": 1}, kinds=cluster_fakes.KINDS, nodes=2, gpus=4)
    options = cluster.ClusterOptions("slurm", without_gpus=without_gpus)
    statuses = state.statuses(plan, tmp_path)
    run = cluster._Run(plan, tmp_path, statuses, list(plan.stages.values()), options, Silent())
    (stage_to_run,) = run.todo.values()
    assert cluster.snakefile_entry(stage_to_run, options)["gres"] == (
        "" if without_gpus else "gpu:4"
    )
    assert stage_to_run.id in plan.stages  # the option does not change the id


def test_missing_snakemake_prints_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KDEP_SNAKEMAKE", raising=False)
    monkeypatch.setattr(cluster, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    plan = fakes.diamond()
    statuses = state.statuses(plan, tmp_path / "w")
    with pytest.raises(KdepError, match="make cluster"):
        cluster.run_plan(plan, tmp_path / "w", statuses, cluster.ClusterOptions("slurm"))


def test_an_interrupt_ignored_by_snakemake_is_repeated(tmp_path, monkeypatch):
    """A program ignores the first SIGINT, as Snakemake may on a busy machine."""
    program = tmp_path / "snakemake"
    program.write_text(
        f"#!{sys.executable}\n"
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, end))\n"
        "def end(*_): print('Terminating processes on user request'); sys.exit(1)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w')\n"
        "time.sleep(60); time.sleep(60)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("KDEP_SNAKEMAKE", str(program))
    monkeypatch.setattr(cluster, "_CANCEL_REPEAT", 0.5)

    def interrupt() -> None:
        wait_for((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    plan, work = fakes.diamond(), tmp_path / "w"
    statuses = state.statuses(plan, work)
    outcome = cluster.run_plan(plan, work, statuses, cluster.ClusterOptions("snakemake-local"))
    assert outcome.signal == signal.SIGINT
    assert outcome.unfinished == sorted(plan.stages)
    assert not outcome.failed


def test_snakemake_reacts_to_an_interrupt_even_if_this_command_ignores_sigint(
    tmp_path, monkeypatch
):
    """Under `nohup` or after a shell's `&`, SIGINT is ignored, which child processes inherit."""
    program = tmp_path / "snakemake"
    program.write_text(
        f"#!{sys.executable}\nimport time\nopen({str(tmp_path / 'ready')!r}, 'w')\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("KDEP_SNAKEMAKE", str(program))

    def stop() -> None:
        wait_for((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    plan, work, begin = fakes.diamond(), tmp_path / "w", time.monotonic()
    former_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        threading.Thread(target=stop).start()
        statuses = state.statuses(plan, work)
        outcome = cluster.run_plan(plan, work, statuses, cluster.ClusterOptions("snakemake-local"))
    finally:
        signal.signal(signal.SIGINT, former_handler)
    assert outcome.signal == signal.SIGTERM
    assert time.monotonic() < begin + 50  # before the program's 60 s are over


# --- the command ---------------------------------------------------------------------------------


def test_the_exit_code_distinguishes_success_failure_and_an_invalid_plan(tmp_path):
    plan = fakes.diamond(b={"do": "kdep"})
    for name, code in (("a", 0), ("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        exit_code, output = finish(start_stage(plan, tmp_path, name))
        assert exit_code == code, output
    assert fakes.traced(tmp_path) == ["a", "b", "c"]  # a ran once; d did not run, as b failed
    for name, message in (("b", "a wrong thing"), ("d", "is damaged")):
        assert message in read_json(tmp_path / fakes.id_of(plan, name) / "failed.json")["error"]
    assert outputs(plan, tmp_path, "c") == {"value": 101, "threads": 1}
    (tmp_path / "plan.json").write_text("{}")
    assert finish(start_stage(plan, tmp_path, "a"))[0] == 2


def test_a_second_process_of_a_stage_exits_or_waits_and_does_not_run_it(tmp_path):
    plan = fakes.diamond(a={"do": "wait"})
    first = start_stage(plan, tmp_path, "a")
    wait_for(lambda: fakes.traced(tmp_path))
    waiting = start_stage(plan, tmp_path, "a")
    assert finish(start_stage(plan, tmp_path, "a", "--no-wait"))[0] == os.EX_TEMPFAIL
    (tmp_path / "go").touch()
    assert finish(first)[0] == 0
    assert finish(waiting)[0] == 0
    assert fakes.traced(tmp_path) == ["a"]


def test_a_waiting_process_runs_the_stage_when_the_first_is_killed(tmp_path):
    plan = fakes.diamond(a={"do": "wait"})
    first = start_stage(plan, tmp_path, "a")
    wait_for(lambda: fakes.traced(tmp_path))
    waiting = start_stage(plan, tmp_path, "a")
    first.kill()
    finish(first)
    (tmp_path / "go").touch()
    assert finish(waiting)[0] == 0
    assert fakes.traced(tmp_path, "end") == ["a"]


def test_sigterm_stops_cleanly_and_the_next_run_resumes(tmp_path):
    plan = Plan("grow")
    add_stage(plan, "grow", "g", {"steps": 30}, kinds=fakes.KINDS)
    grow = fakes.id_of(plan, "g")
    steps = tmp_path / grow / "steps.txt"
    process = start_stage(plan, tmp_path, "g")
    wait_for(lambda: fakes.steps(tmp_path, grow) > 4)
    process.terminate()
    assert finish(process)[0] == 128 + signal.SIGTERM
    assert not (steps.parent / "failed.json").exists()
    assert finish(start_stage(plan, tmp_path, "g"))[0] == 0
    assert outputs(plan, tmp_path, "g")["resumed_at"] > 4
    assert steps.read_text().split() == [str(k) for k in range(30)]


def test_a_hung_stage_is_stopped(tmp_path):
    plan = Plan("hung")
    add_stage(plan, "make", "h", {"sleep": 60}, kinds=fakes.KINDS, timeout=1.0)
    assert finish(start_stage(plan, tmp_path, "h"))[0] == 1
    message = read_json(tmp_path / fakes.id_of(plan, "h") / "failed.json")["error"]
    assert "time limit of 1 s" in message


def test_stages_use_different_gpus_and_a_killed_stage_s_gpu_is_freed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    plan = Plan("gpus")
    for k in range(3):
        add_stage(plan, "gpu", f"g{k}", {"sleep": 1.0, "k": k}, kinds=cluster_fakes.KINDS)
    killed = start_stage(plan, tmp_path, "g2", "--gpus", "4,7")
    log = tmp_path / fakes.id_of(plan, "g2") / "stage.log"
    wait_for(log.exists)
    killed.kill()
    finish(killed)
    processes = [start_stage(plan, tmp_path, f"g{k}", "--gpus", "4,7") for k in range(2)]
    assert [finish(p)[0] for p in processes] == [0, 0]
    results = [outputs(plan, tmp_path, f"g{k}") for k in range(2)]
    (_, end), (begin, _) = sorted(g["span"] for g in results)
    if begin < end:  # they overlap, unless the machine is very slow
        assert {g["gpus"] for g in results} == {"4", "7"}
    assert all(g["gpus"] in ("4", "7") for g in results)


# --- the end of a Slurm job ----------------------------------------------------------------------

NOON = datetime(2026, 1, 1, 12)


def job(seconds_left: float, **fields: str) -> dict[str, str]:
    """Slurm's fields of a job of one hour that has `seconds_left` left at NOON."""
    end = NOON + timedelta(seconds=seconds_left)
    times = {"StartTime": end - timedelta(hours=1), "EndTime": end}
    return {
        "JobId": "5",
        "JobState": "RUNNING",
        "PreemptTime": "None",
        "Restarts": "0",
        **{k: v.isoformat() for k, v in times.items()},
        **fields,
    }


@pytest.mark.parametrize(
    ("resumable", "timeout", "job_fields", "requeue", "fails"),
    [
        (True, 7201, job(60), True, False),  # a second job fits
        (True, 7201, job(60, Restarts="1"), True, False),
        (True, 7200, job(60, Restarts="1"), False, True),  # two hours are over
        (True, 3600, job(60), False, True),  # its time limit is one job, so it hung
        (False, 7200, job(60), False, True),  # it would start from the beginning in every job
        (True, 7200, job(1800), False, False),  # stopped by a person: the job's time is not over
        (True, 7200, job(60, JobState="CANCELLED"), False, False),
        (True, 7200, job(60, JobState="COMPLETING"), False, False),
        (False, 7200, job(1800, PreemptTime=NOON.isoformat()), True, False),
        (True, 7200, job(60, EndTime="Unknown"), False, False),
        (True, 7200, {}, False, False),  # no Slurm at all
    ],
)
def test_a_stopped_job_is_requeued_only_if_the_stage_can_finish_later(
    resumable, timeout, job_fields, requeue, fails
):
    plan = fakes.diamond()
    planned = next(iter(plan.stages.values()))
    planned = replace(planned, resumable=resumable, timeout=timeout)
    requeued, error = stage.requeue_after_stop(planned, job_fields, NOON)
    assert requeued == requeue
    assert bool(error) == fails


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pool_runs_a_ddp_stage_of_two_gloo_processes(tmp_path):
    plan = ddp()
    outcome = fakes.run(plan, tmp_path)
    assert outcome.ok, outcome.failed
    record = read_json(tmp_path / fakes.id_of(plan, "d") / "stage.json")
    assert record["outputs"]["world"] == 2
    assert record["outputs"]["w"] == pytest.approx(cluster_fakes.expected_weight(8), abs=1e-12)
    assert record["environment"]["processes"] == 2
    assert record["cpu_s"] > 0
    assert set(record["files"]) == {"who-0.json", "who-1.json", "w.json", "value.txt"}


@pytest.mark.slow
def test_an_error_in_a_rank_is_the_stage_s_error(tmp_path):
    code, output = finish(start_stage(ddp(break_rank=1), tmp_path, "d"))
    assert code == 1
    assert "rank 1: the stage stopped with ValueError: a fault of one rank" in output


def test_a_reported_error_is_one_write_to_the_pipe_also_with_escaped_characters():
    """A pipe takes up to PIPE_BUF bytes completely or not at all; half a line would not be JSON."""
    reader, writer = os.pipe()
    try:
        for text in ("x" * 4000, "\u00e9" * 4000):
            stage_process.Reporter(writer).report_failure(text)
            raw = os.read(reader, 1 << 16)
            assert len(raw) <= select.PIPE_BUF
            assert text.startswith(json.loads(raw))
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.slow
def test_all_ranks_end_if_one_rank_or_the_stage_process_is_killed_and_the_stage_resumes(
    tmp_path,
):
    plan = ddp(steps=60, sleep=0.1)

    def attempt_dir() -> Path:
        return attempts.current_dir(tmp_path, fakes.id_of(plan, "d"))

    def steps() -> int:
        return read_json(attempt_dir() / "w.json")[0] if (attempt_dir() / "w.json").exists() else 0

    def ranks() -> list[int]:
        return [read_json(attempt_dir() / f"who-{r}.json")["pid"] for r in (0, 1)]

    process = start_stage(plan, tmp_path, "d")
    wait_for(lambda: steps() > 3)
    os.kill(ranks()[1], signal.SIGKILL)
    code, output = finish(process)
    assert code == 1, output
    assert "of the stage's 2 processes finished" in output
    assert not any(Path(f"/proc/{p}").exists() for p in ranks())

    first = steps()
    process = start_stage(plan, tmp_path, "d")
    wait_for(lambda: steps() > first + 3)
    process.kill()
    finish(process)
    wait_for(lambda: not any(Path(f"/proc/{p}").exists() for p in ranks()), 20)

    assert finish(start_stage(plan, tmp_path, "d"))[0] == 0
    stage_outputs = outputs(plan, tmp_path, "d")
    assert stage_outputs["resumed_at"] > first + 3
    assert stage_outputs["w"] == pytest.approx(cluster_fakes.expected_weight(60), abs=1e-12)


def all_ended(pids: list[int]) -> bool:
    """Whether none of the processes exists."""
    return not any(Path(f"/proc/{p}").exists() for p in pids)


@pytest.mark.slow
def test_ranks_are_forks_of_the_pool_s_server_and_end_together(tmp_path):
    spec = dict(steps=150, sleep=0.05)
    plan = ddp(**spec)
    stage_id = fakes.id_of(plan, "d")

    def attempt_dir() -> Path:
        return attempts.current_dir(tmp_path, stage_id)

    path = os.pathsep.join(str(p) for p in (REPO, HERE, HERE.parent / "cluster"))
    process = subprocess.Popen(
        [
            *(sys.executable, str(HERE / "engine_fakes.py"), str(tmp_path)),
            f"__import__('cluster_fakes').ddp(**{spec!r})",
            "dict(preload='ddp_preload', retry=4)",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )

    def rank_files() -> list[dict]:
        return [read_json(attempt_dir() / f"who-{r}.json") for r in (0, 1)]

    def pids() -> list[int]:
        """Both ranks, their agent and the stage, once they are at work."""
        files = [attempt_dir() / f"who-{r}.json" for r in (0, 1)]
        if process.poll() is not None or not all(f.exists() for f in files):
            return []
        agent = rank_files()[0]["agent"]
        try:
            stage = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return []
        return [w["pid"] for w in rank_files()] + [agent, stage]

    def at_work(last: int) -> bool:
        return steps() > last and all(Path(f"/proc/{p}").exists() for p in pids() or [0])

    def steps() -> int:
        return read_json(attempt_dir() / "w.json")[0] if (attempt_dir() / "w.json").exists() else 0

    last, importers = 0, []  # importers: for every rank, the process that imported torch
    # Index in pids(): 0 and 1 are the ranks, 2 their agent, 3 the stage.
    for index, signal_name in ((1, "KILL"), (2, "KILL"), (3, "TERM"), (3, "KILL")):
        wait_for(lambda last=last: at_work(last), 300)
        last, killed_group = steps() + 1, pids()
        importers += [w["importer"] for w in rank_files()]
        os.kill(killed_group[index], getattr(signal, f"SIG{signal_name}"))
        wait_for(lambda pids=killed_group: all_ended(pids))
    code, output = finish(process)
    assert code == 0, output
    importers += [w["importer"] for w in rank_files()]
    content = read_json(attempt_dir() / "stage.json")
    assert content["outputs"]["w"] == pytest.approx(cluster_fakes.expected_weight(150), abs=1e-12)
    assert content["outputs"]["resumed_at"] >= last - 1
    server = importers[0]
    assert server is not None
    # Two ranks in each of five starts.
    assert importers == [server] * 10, "a rank imported torch itself"
    assert 0 < content["cpu_s"] < server["cpu_s"], (
        "CPU seconds of the server are counted in its fork"
    )


TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "none",
}


def set_torchrun_variables(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Sets the environment variables that torchrun sets for rank 1 of 2."""
    for key, value in {**TORCHRUN, **changes}.items():
        monkeypatch.setenv(key, value)


def test_torchrun_s_variables_do_not_reach_a_stage(monkeypatch):
    """Otherwise stages of two runners would connect to each other and train together."""
    set_torchrun_variables(monkeypatch)
    assert leave_launcher() == (1, 2)
    assert not set(TORCHRUN) & set(os.environ)
    assert leave_launcher() == (0, 1)


def test_a_stage_command_under_torchrun_is_refused(monkeypatch, tmp_path, capsys):
    plan = ddp()
    stage.write_plan(tmp_path / "plan.json", plan.name, plan.stages.values())
    set_torchrun_variables(monkeypatch)
    argv = ["--plan", str(tmp_path / "plan.json"), "--stage", fakes.id_of(plan, "d")]
    assert stage.main([*argv, "--work-dir", str(tmp_path)]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_several_nodes_of_torchrun_are_refused(monkeypatch):
    set_torchrun_variables(monkeypatch, GROUP_WORLD_SIZE="2")
    with pytest.raises(KdepError, match="--executor slurm"):
        leave_launcher()


def test_rank_0_of_torchrun_runs_the_suite_with_torchrun_s_number_of_processes_per_stage(
    monkeypatch, tmp_path, capsys
):
    plan = tmp_path / "plan.json"
    argv = ["paper_r18", "--rehearse", "--work-dir", str(tmp_path), "--write-plan", str(plan)]
    set_torchrun_variables(monkeypatch)
    assert run_suite.main(argv) == 0
    assert "rank 0 runs the suite" in capsys.readouterr().out
    assert not plan.exists()
    set_torchrun_variables(monkeypatch, RANK="0")
    assert run_suite.main(argv) == 0
    processes = {}  # stage kind -> numbers of processes of its stages
    for row in read_json(plan)["stages"]:
        processes.setdefault(row["kind"], set()).add(row["processes"])
    parallel_kinds = {"pretrain", "transfer"}
    assert {kind for kind, n in processes.items() if n == {2}} == parallel_kinds
    assert {kind for kind, n in processes.items() if n == {1}} == set(processes) - parallel_kinds

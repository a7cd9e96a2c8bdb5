"""The local pool, which runs stages in processes of this machine: order, kills, locks, faults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import engine_fakes as fakes
import pytest

from kdep_bench.cli import run_suite_output
from kdep_bench.engine import attempts, local_pool, select, state
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json
from kdep_bench.suite.graph import Plan, add_stage


def output_value(plan, work: Path, name: str) -> int:
    """The output `value` of a finished stage."""
    return read_json(work / fakes.id_of(plan, name) / "stage.json")["outputs"]["value"]


def wait_for(condition, seconds: float = 20.0) -> None:
    """Polls until `condition()` is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {seconds} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def begun_pids(work: Path) -> list[int]:
    """Process ids of all started stages, from trace.log."""
    path = work / "trace.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[3]) for line in lines if line.startswith("begin")]


def start_runner(work: Path, expression: str) -> subprocess.Popen:
    """Starts a runner as a separate process; `expression` makes the plan."""
    return subprocess.Popen(
        [sys.executable, str(fakes.HERE / "engine_fakes.py"), str(work), expression],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_stages_run_in_order_and_record_outputs_files_and_environment(tmp_path):
    plan = fakes.diamond()
    outcome = fakes.run(plan, tmp_path)
    assert outcome.ok
    assert len(outcome.ran) == 4
    order = fakes.traced(tmp_path)
    assert order[0] == "a"
    assert order[-1] == "d"
    assert output_value(plan, tmp_path, "d") == (1 + 10) + (1 + 100)
    record = read_json(tmp_path / fakes.id_of(plan, "d") / "stage.json")
    assert record["files"]["value.txt"][0] == len("112")  # bytes
    assert set(record["files"]) == {"value.txt"}
    assert record["peak_rss"] > 1 << 20  # 1 MiB
    assert record["environment"]["threads"] == record["outputs"]["threads"] == 1
    assert not any(os.uname().nodename in str(v) for v in record["environment"].values())
    assert str(tmp_path) not in (tmp_path / fakes.id_of(plan, "d") / "stage.json").read_text()


def test_a_second_run_does_nothing(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    outcome = fakes.run(plan, tmp_path)
    assert outcome.ok
    assert outcome.ran == []
    assert len(fakes.traced(tmp_path)) == 4


def test_only_changed_stages_and_their_dependents_run_again(tmp_path):
    fakes.run(fakes.diamond(), tmp_path)
    outcome = fakes.run(fakes.diamond(b={"value": 11}), tmp_path)
    assert sorted(i.split("-")[1] for i in outcome.ran) == ["b", "d"]
    assert fakes.run(fakes.diamond(), tmp_path).ran == []


def test_force_runs_a_stage_and_its_dependents(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    outcome = fakes.run(plan, tmp_path, force=lambda s: s.name == "c")
    assert sorted(i.split("-")[1] for i in outcome.ran) == ["c", "d"]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise", "ValueError: a fault of the stage"),
        ("kdep", "a wrong thing; expected a right thing. Fix: do it right."),
        ("kill", "killed by SIGKILL"),
        ("sys.exit", "sys.exit(0)"),
        ("os._exit", "exit code 0 and no result"),
        ("nan", "cannot be stored as strict JSON"),
        ("none", "returned NoneType"),
    ],
)
def test_a_failure_prints_one_line_and_the_other_stages_run(tmp_path, do, message):
    plan = fakes.diamond(b={"do": do})
    outcome = fakes.run(plan, tmp_path)
    b, d = fakes.id_of(plan, "b"), fakes.id_of(plan, "d")
    assert set(outcome.failed) == {b}
    assert message in outcome.failed[b]
    assert "\n" not in outcome.failed[b]
    assert set(outcome.skipped) == {d}
    assert b in outcome.skipped[d]
    assert sorted(fakes.traced(tmp_path, "end")) == ["a", "c"]
    assert read_json(tmp_path / b / "failed.json")["error"] == outcome.failed[b]
    statuses = state.statuses(plan, tmp_path)
    assert statuses[b].why.startswith("failed before: ")
    assert message in statuses[b].why
    if do == "raise":
        assert "Traceback" in (tmp_path / b / "stage.log").read_text()


def test_fail_fast_starts_no_further_stage(tmp_path):
    plan = fakes.diamond(b={"do": "raise"}, c={"sleep": 0.5})
    outcome = fakes.run(plan, tmp_path, jobs=1, fail_fast=True)
    assert len(outcome.failed) == 1
    assert fakes.traced(tmp_path) == ["a", "b"]
    assert len(outcome.skipped) == 2


def test_a_retried_stage_can_succeed(tmp_path):
    assert not fakes.run(fakes.diamond(b={"do": "once"}), tmp_path / "no").ok
    outcome = fakes.run(fakes.diamond(b={"do": "once"}), tmp_path / "yes", retry=1)
    assert outcome.ok
    assert fakes.traced(tmp_path / "yes").count("b") == 2


@pytest.mark.parametrize("do", [None, "stubborn"])
def test_a_stage_is_stopped_at_its_time_limit(tmp_path, monkeypatch, do):
    monkeypatch.setattr(local_pool, "GRACE", 0.5)
    plan = fakes.diamond()
    b = fakes.add_stage(
        plan, "make", "slow", {"sleep": 60, "do": do}, kinds=fakes.KINDS, timeout=0.6
    )
    start = time.monotonic()
    outcome = fakes.run(plan, tmp_path)
    assert time.monotonic() - start < 10
    assert set(outcome.failed) == {b}
    assert "time limit of 0.6 s" in outcome.failed[b]
    assert len(outcome.ran) == 4
    assert not any(is_alive(p) for p in begun_pids(tmp_path))


def test_processes_that_outlive_their_stage_are_killed(tmp_path):
    assert fakes.run(fakes.diamond(a={"do": "orphan"}), tmp_path).ok
    remaining = subprocess.run(["pgrep", "-f", "^sleep 54.321$"], capture_output=True, text=True)
    assert remaining.stdout == ""


def test_a_stage_that_uses_all_cores_runs_alone(tmp_path):
    plan = fakes.chain(1, width=4, sleep=0.2)  # four stages of one core
    # cpus=0 means all cores of the pool, which has two.
    wide = fakes.add_stage(plan, "make", "wide", {"sleep": 0.2}, kinds=fakes.KINDS, cpus=0)
    assert fakes.run(plan, tmp_path).ok
    assert read_json(tmp_path / wide / "stage.json")["outputs"]["threads"] == 2
    spans = {}
    for line in (tmp_path / "trace.log").read_text().splitlines():
        event, name, moment, _ = line.split()
        spans.setdefault(name, {})[event] = float(moment)

    def used_cores(moment: float) -> int:
        running = [name for name, s in spans.items() if s["begin"] <= moment < s["end"]]
        return sum(2 if name == wide else 1 for name in running)

    assert max(used_cores(span["begin"]) for span in spans.values()) == 2


def test_the_longest_chain_starts_first(tmp_path):
    plan = fakes.chain(1, width=2)
    needs = {}
    for k in range(3):
        needs = {"x": fakes.add_stage(plan, "make", f"z{k}", {}, needs, kinds=fakes.KINDS)}
    assert fakes.run(plan, tmp_path, jobs=1).ok
    assert fakes.traced(tmp_path)[0] == "z0"


def test_wrong_stage_functions_raise_kdep_error(tmp_path):
    kinds = {
        "none": fakes.StageKind("engine_fakes:not_there"),
        "signature": fakes.StageKind("engine_fakes:wrong_parameters"),
    }
    plan = fakes.Plan("wrong")
    a = fakes.add_stage(plan, "none", "a", {}, kinds=kinds)
    b = fakes.add_stage(plan, "signature", "b", {}, kinds=kinds)
    failed = fakes.run(plan, tmp_path).failed
    assert "cannot be imported" in failed[a]
    assert "does not accept" in failed[b]


def test_a_killed_stage_starts_again_and_a_killed_resumable_stage_resumes(tmp_path):
    plan = fakes.Plan("kill")
    fakes.add_stage(plan, "make", "plain", {"sleep": 3.0}, kinds=fakes.KINDS)
    grow = fakes.add_stage(plan, "grow", "grown", {"steps": 40}, kinds=fakes.KINDS)
    expression = (
        "(p := Plan('kill'), add_stage(p, 'make', 'plain', {'sleep': 3.0}, kinds=KINDS), "
        "add_stage(p, 'grow', 'grown', {'steps': 40}, kinds=KINDS))[0]"
    )
    runner = start_runner(tmp_path, expression)
    wait_for(lambda: fakes.steps(tmp_path, grow) > 5)
    wait_for(lambda: len(begun_pids(tmp_path)) == 2)
    for pid in begun_pids(tmp_path):
        os.kill(pid, signal.SIGKILL)
    output, _ = runner.communicate(timeout=20)
    assert runner.returncode == 1, output
    assert "killed by SIGKILL" in output
    plain = tmp_path / fakes.id_of(plan, "plain")
    attempt_dir = attempts.current_dir(tmp_path, plain.name)
    assert (attempt_dir / "half.bin").exists()
    (plain / "leftover").mkdir()
    assert fakes.run(plan, tmp_path).ok
    assert not (plain / "leftover").exists()
    assert not attempt_dir.exists()
    steps = tmp_path / grow / "steps.txt"
    assert read_json(tmp_path / grow / "stage.json")["outputs"]["resumed_at"] > 5
    assert steps.read_text().splitlines() == [str(k) for k in range(40)]


def test_killing_the_runner_ends_its_stages_and_a_rerun_completes(tmp_path):
    expression = "diamond(b={'sleep': 30}, c={'sleep': 30})"
    runner = start_runner(tmp_path, expression)
    wait_for(lambda: len(begun_pids(tmp_path)) == 3)
    runner.kill()
    runner.wait()
    wait_for(lambda: not any(is_alive(p) for p in begun_pids(tmp_path)), 5)
    plan = fakes.diamond()
    assert fakes.run(plan, tmp_path).ok
    assert fakes.traced(tmp_path).count("a") == 1
    assert output_value(plan, tmp_path, "d") == 112


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_stages_within_seconds(tmp_path, number):
    runner = start_runner(tmp_path, "diamond(b={'sleep': 30}, c={'sleep': 30})")
    wait_for(lambda: len(begun_pids(tmp_path)) == 3)
    start = time.monotonic()
    runner.send_signal(number)
    output, _ = runner.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert runner.returncode == 128 + number, output
    assert not any(is_alive(p) for p in begun_pids(tmp_path))
    plan = fakes.diamond(b={"sleep": 30}, c={"sleep": 30})
    statuses = state.statuses(plan, tmp_path)
    assert statuses[fakes.id_of(plan, "a")].done
    assert statuses[fakes.id_of(plan, "b")].why == "interrupted"
    assert not (tmp_path / fakes.id_of(plan, "b") / "failed.json").exists()


def test_two_runners_run_each_stage_once(tmp_path):
    expression = "chain(3, width=3, sleep=0.3)"
    runners = [start_runner(tmp_path, expression) for _ in range(2)]
    for runner in runners:
        output, _ = runner.communicate(timeout=60)
        assert runner.returncode == 0, output
    assert len(fakes.traced(tmp_path)) == 9
    assert len(set(fakes.traced(tmp_path))) == 9


def test_the_second_runner_takes_over_when_the_first_is_killed(tmp_path):
    expression = "diamond(a={'sleep': 5.0})"
    first = start_runner(tmp_path, expression)
    wait_for(lambda: len(begun_pids(tmp_path)) == 1)
    second = start_runner(tmp_path, expression)
    time.sleep(1.0)
    assert second.poll() is None
    first.kill()
    first.wait()
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 0, output
    assert fakes.traced(tmp_path).count("a") == 2
    assert fakes.traced(tmp_path, "end").count("a") == 1


def test_stages_in_a_moved_work_dir_are_still_done(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert fakes.run(plan, tmp_path / "new").ran == []


def test_a_truncated_stage_json_is_not_done(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    path = tmp_path / fakes.id_of(plan, "c") / "stage.json"
    path.write_bytes(path.read_bytes()[:-40])
    statuses = state.statuses(plan, tmp_path)
    assert "stage.json" in statuses[fakes.id_of(plan, "c")].why
    assert [i.split("-")[1] for i in fakes.run(plan, tmp_path).ran] == ["c"]


def test_a_flipped_bit_in_an_input_is_detected_and_repaired(tmp_path):
    plan = fakes.diamond()
    fakes.run(plan, tmp_path)
    (tmp_path / fakes.id_of(plan, "b") / "value.txt").write_text("99")  # same size as "11"
    shutil.rmtree(tmp_path / fakes.id_of(plan, "d"))
    outcome = fakes.run(plan, tmp_path)
    assert "its checksum differs" in outcome.failed[fakes.id_of(plan, "d")]
    assert fakes.run(plan, tmp_path).ok
    assert output_value(plan, tmp_path, "d") == 112


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_resumable_stage_does_not_resume_from_damaged_files(tmp_path, damage):
    plan = fakes.Plan("grown")
    grow = fakes.add_stage(plan, "grow", "g", {"steps": 3, "sleep": 0}, kinds=fakes.KINDS)
    last = fakes.add_stage(plan, "make", "m", {}, {"x": grow}, kinds=fakes.KINDS)
    assert fakes.run(plan, tmp_path).ok
    shutil.rmtree(tmp_path / last)
    steps = tmp_path / grow / "steps.txt"
    steps.write_text("0\n1\n" if damage == "cut" else "0\n1\n3\n")
    while not fakes.run(plan, tmp_path).ok:  # the damage is found when the next stage reads it
        assert not (tmp_path / grow / "stage.json").exists()
    assert steps.read_text() == "0\n1\n2\n"
    assert not (tmp_path / grow / state.DAMAGED).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_fails_the_stage_with_that_reason(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        plan = fakes.diamond(b={"do": "fill"})
        outcome = fakes.run(plan, disk)
        b = fakes.id_of(plan, "b")
        assert b in outcome.failed  # and perhaps c, for the same reason
        assert all("ran out of disk space" in s for s in outcome.failed.values())
        assert (disk / fakes.id_of(plan, "a") / "stage.json").exists()
        assert not (disk / b / "stage.json").exists()
        good = fakes.diamond()
        shutil.rmtree(disk / b)  # frees disk space
        assert fakes.run(good, disk).ok
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_median_start_of_stages_after_the_first_takes_under_0_3_s(tmp_path):
    plan = fakes.chain(6)
    assert fakes.run(plan, tmp_path).ok
    starts = [read_json(tmp_path / i / "stage.json")["start_s"] for i in list(plan.stages)[1:]]
    assert sorted(starts)[len(starts) // 2] < 0.3  # not the largest: the machine may be busy


def test_a_pattern_selects_a_stage_with_its_upstream_stages(tmp_path):
    plan = fakes.diamond()
    chosen = select.select_stages(plan, ["make-b*"])
    assert chosen == {fakes.id_of(plan, "a"), fakes.id_of(plan, "b")}
    with pytest.raises(Exception, match="matches no stage"):
        select.select_stages(plan, ["nothing"])
    assert select.select_stages(plan, []) is None


def test_a_script_without_an_if_main_guard_is_not_run_again_by_the_fork_server(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(fakes.HERE)!r})\n"
        "from pathlib import Path; import engine_fakes as fakes\n"
        f"print('main', fakes.run(fakes.diamond(), Path({str(tmp_path / 'w')!r})).ok)\n"
    )
    completed = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60
    )
    assert completed.stdout == "main True\n", completed.stderr


def test_a_changed_T_reruns_pre_training_and_transfers_but_a_report_option_reruns_nothing(tmp_path):
    from test_suite_config import build

    from kdep_bench.cli.run_suite_output import explain
    from kdep_bench.suite.plan import build_plan

    first_plan = build_plan(build(), fakes.PRETEND)
    assert fakes.run(first_plan, tmp_path).ok
    hotter = {"base": "kdep", "transform": {"T": 0.3}}
    changed_plan = build_plan(build(methods=[hotter, "scratch"]), fakes.PRETEND)
    lines = explain(changed_plan, state.statuses(changed_plan, tmp_path), tmp_path).splitlines()
    to_run = [line for line in lines if line.startswith("run ")]
    assert [line.split()[1].split("-")[0] for line in to_run] == [
        "pretrain", "export", "transfer", "transfer"
    ]  # fmt: skip
    assert "spec changed: method.transform.T 0.1 -> 0.3" in to_run[0]
    assert all("upstream" in line and "will run" in line for line in to_run[1:])
    outcome = fakes.run(changed_plan, tmp_path)
    assert [i.split("-")[0] for i in outcome.ran] == ["pretrain", "export", "transfer", "transfer"]
    assert all("kdep" in i for i in outcome.ran)
    for change in (
        {"claims": ["kdep_beats_scratch"]},
        {"about": "another text"},
        {"methods": [{"base": "kdep", "source": "elsewhere"}, "scratch"]},
    ):
        same_plan = build_plan(build(**change), fakes.PRETEND)
        assert not any(s.run for s in state.statuses(same_plan, tmp_path).values())


def test_cores_are_divided_among_stages_with_gpus(tmp_path):
    plan = Plan("shares")
    for gpus, cpus in ((0, 1), (1, 1), (2, 1), (1, 9)):
        add_stage(plan, "make", f"g{gpus}c{cpus}", {}, kinds=fakes.KINDS, cpus=cpus)
    stages = {
        name: replace(plan.stages[fakes.id_of(plan, name)], gpus=int(name[1]))
        for name in ("g0c1", "g1c1", "g2c1", "g1c9")
    }
    # With 4 GPUs, a stage with g GPUs gets at least (16 - 1) g // 4 of the 16 cores.
    # Without GPUs it gets the cores that its `cpus` requests.
    for gpus, expected_cpus in ((("0", "1", "2", "3"), [1, 3, 7, 9]), ((), [1, 1, 1, 9])):
        pool = local_pool.Pool(plan, tmp_path, {}, local_pool.PoolOptions(cpus=16, gpus=gpus))
        assert [pool._cores_for(s) for s in stages.values()] == expected_cpus


def test_a_tmpdir_too_long_for_sockets_raises_kdep_error(tmp_path, monkeypatch):
    """Without this check: a traceback 'AF_UNIX path too long', and wrong advice to free memory."""
    import tempfile

    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(KdepError, match="TMPDIR") as error:
        fakes.run(fakes.diamond(), tmp_path / "work")
    assert str(deep) in str(error.value)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert fakes.run(fakes.diamond(), tmp_path / "work").ok


def test_the_common_reason_of_several_failures_is_printed_once():
    import io

    from kdep_bench.engine.progress import Plain

    stream = io.StringIO()
    view, plan = Plain(stream), fakes.diamond()
    first, second, third, *_ = plan.stages.values()
    view.failed(first, "a wrong thing.", Path("log1"))
    view.failed(second, "a wrong thing.", Path("log2"))
    view.failed(third, "another.", Path("log3"))
    output = stream.getvalue()
    assert output.count("a wrong thing.") == 1
    assert f"same error as {first.id}" in output
    assert output.count("another.") == 1


def test_two_runners_count_each_stage_once_and_both_report_all_done(tmp_path, capsys):
    """A runner must neither count stages of the other as its own nor report them as not done."""
    plan = fakes.chain(2, width=2, sleep=0.3)
    statuses = state.statuses(plan, tmp_path)
    expression = "chain(2, width=2, sleep=0.3)"
    runner = start_runner(tmp_path, expression)
    outcome = local_pool.run_plan(plan, tmp_path, statuses, fakes.FAST)
    printed, _ = runner.communicate(timeout=60)
    # The other runner prints the list of the stages that it ran.
    ran_by_other = eval(printed.splitlines()[-1].partition("] ")[0] + "]")
    assert sorted(outcome.ran + ran_by_other) == sorted(plan.stages)
    assert sorted(outcome.ran + outcome.elsewhere) == sorted(plan.stages)
    assert Counter(fakes.traced(tmp_path)) == dict.fromkeys(("w0k0", "w0k1", "w1k0", "w1k1"), 1)
    assert run_suite_output.summarise(plan, statuses, outcome, "") == 0
    output = capsys.readouterr().out
    assert f"{len(outcome.ran)} finished in this run, " in output
    assert "4 of 4 stages are done" in output
    if outcome.elsewhere:
        assert f"{len(outcome.elsewhere)} finished by another process" in output


def test_stages_finished_by_another_runner_are_not_counted_as_run_here(tmp_path):
    plan = fakes.diamond()
    statuses = state.statuses(plan, tmp_path)
    assert fakes.run(plan, tmp_path).ok
    outcome = local_pool.run_plan(plan, tmp_path, statuses, fakes.FAST)
    assert (outcome.ran, sorted(outcome.elsewhere)) == ([], sorted(plan.stages))
    assert outcome.ok

"""tools/run_suite.py: start without torch, exit codes, errors in one line, GPUs and budgets."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdep_bench.cli import run_suite
from kdep_bench.suite.config import names

REPO = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs tools/run_suite.py."""
    return subprocess.run(
        [sys.executable, str(REPO / "tools" / "run_suite.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["smoke", "--dry-run"],
        ["pocket", "--dry-run"],
        ["paper_r18", "--dry-run"],
        ["paper_r18", "--dry-run", "--device-rate", "a100.tf32:0.3"],
        ["--list", "tasks"],
        ["--list", "methods"],
    ],
)
def test_help_lists_and_dry_runs_take_under_1_5_s_and_do_not_import_torch(arguments, tmp_path):
    if "--dry-run" in arguments:
        arguments = [*arguments, "--work-dir", str(tmp_path / "w")]
    code = (
        "import sys, time, resource; from kdep_bench.cli.run_suite import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('CPU', usage.ru_utime + usage.ru_stime, 'torch' in sys.modules)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    _, cpu_seconds, has_imported_torch = completed.stdout.splitlines()[-1].split()
    assert has_imported_torch == "False"
    assert float(cpu_seconds) < 1.5  # not wall time: the machine may be busy
    assert not (tmp_path / "w").exists()


def test_the_list_of_methods_shows_families_inputs_labels_and_sources():
    rows = [line.split(None, 4) for line in run("--list", "methods").stdout.splitlines()]
    assert rows[0] == ["METHOD", "FAMILY", "NEEDS", "LABELS", "SOURCE"]
    table = {row[0]: row[1:] for row in rows[1:]}
    assert set(table) == set(names("method"))
    assert table["kdep"][:3] == ["feature", "pooled", "label-free"]
    assert table["supervised"][:3] == ["supervised", "labels", "labels"]
    assert table["scratch"][:3] == ["none", "-", "none"]
    assert all(row[3] for row in table.values())


def test_a_dry_run_lists_every_stage_with_its_reason(tmp_path):
    output = run("smoke", "--dry-run", "--work-dir", str(tmp_path)).stdout
    assert "run   prepare-smoke-" in output
    assert output.count("never run") == 25
    assert "25 stages, 0 done, 25 to run" in output
    selected = run("smoke", "--dry-run", "--only", "scratch", "--work-dir", str(tmp_path)).stdout
    assert "supervised" not in selected
    assert "prepare-smoke-" in selected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pockt"], "did you mean pocket"),
        (["no/such/file.py"], "does not exist"),
        (["smoke", "--only", "nonsense"], "list the ids: --dry-run without --only"),
        (["smoke", "--force", "nonsense"], "list the ids: --dry-run without --force"),
        (["smoke", "--jobs", "0"], "--jobs is 0"),
        (["smoke", "--budget-hours", "-1"], "--budget-hours is -1"),
        (["smoke", "--fit-budget"], "--fit-budget needs --budget-hours"),
        (["smoke", "--measure-throughput"], "--measure-throughput works only with --dry-run"),
        (
            ["smoke", "--dry-run", "--device-rate", "a100"],
            "fraction of the peak, which training never reaches",
        ),
        (["smoke", "--budget-hours", "1"], "stages to run are not known"),
    ],
)
def test_an_invalid_argument_prints_one_line_and_exits_with_2(arguments, message, tmp_path):
    completed = run(*arguments, "--work-dir", str(tmp_path))
    assert completed.returncode == 2
    assert message in completed.stderr
    assert len(completed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--probe", "--measure-throughput"),
        ("--count", "--count-flops"),
        ("--fit", "--fit-budget"),
    ],
)
def test_former_flag_names_still_work_and_are_not_in_the_help(old, new):
    from kdep_bench.cli.run_suite_arguments import parser

    assert parser().parse_args(["smoke", old]) == parser().parse_args(["smoke", new])
    assert parser().parse_args(["smoke"]) != parser().parse_args(["smoke", new])
    shown = parser().format_help().split()
    assert new in " ".join(shown)
    assert not {old, f"[{old}]", f"{old}]"} & set(shown)


def test_a_broken_config_prints_all_its_faults_and_exits_with_2(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("suite = dict(name='x', data='smoke', studnets=['resnet18_w32'])\n")
    completed = run(str(path))
    assert completed.returncode == 2
    first, *faults = completed.stderr.strip().splitlines()
    assert first.endswith(f"the suite {path} has 4 faults:")
    assert "unknown key 'studnets'" in faults[0]
    for key, line in zip(("methods", "budget", "seeds"), faults[1:], strict=True):
        assert f"lacks the key '{key}'" in line


def test_help_takes_under_1_5_s():
    start = time.monotonic()
    assert run("--help").returncode == 0
    assert time.monotonic() - start < 1.5


def test_ctrl_c_while_the_toolkits_are_imported_prints_no_traceback(tmp_path):
    """The terminal sends SIGINT also to the fork server, the parent of the stages' processes."""
    command = [sys.executable, str(REPO / "tools" / "run_suite.py"), "smoke", "--plain"]
    command += [f"--work-dir={tmp_path / 'w'}", f"--results-dir={tmp_path / 'r'}"]
    runner = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert runner.stdout is not None
    first_line = runner.stdout.readline()
    assert "25 stage(s) to run" in first_line
    end = time.monotonic() + 60
    while not fork_servers(runner.pid) and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(runner.pid, signal.SIGINT)
    output, _ = runner.communicate(timeout=60)
    assert runner.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    assert f"Resume with: python {REPO / 'tools/run_suite.py'} smoke" in output
    assert not fork_servers(runner.pid)


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("tools/run_suite.py", "python tools/run_suite.py smoke --plain"),
        ("kdep-bench run", "kdep-bench run smoke --plain"),
    ],
)
def test_the_printed_command_to_resume_is_the_command_that_was_started(
    program: str, command: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", [program, "smoke", "--plain"])
    assert run_suite._command(["smoke", "--plain"]) == command


def fork_servers(group: int) -> list[int]:
    """Process ids of the fork servers of a process group."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            in_group = os.getpgid(int(process.name)) == group
            if in_group and b"forkserver" in (process / "cmdline").read_bytes():
                pids.append(int(process.name))
    return pids


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("7", "--gpus has GPU 7, but this machine has GPU 0 to 1"),
        ("1,2", "--gpus has GPU 2, but"),
        ("0,0", "contains 0 twice"),
        ("0,", "contains '', which is not a GPU"),
        ("two", "contains 'two', which is not a GPU"),
        ("-1", "contains '-1', which is not a GPU"),
        ("0,GPU-5a", "mixes numbers and UUIDs"),
    ],
)
@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_gpus_that_do_not_exist_are_refused_before_anything_runs(
    gpus, message, options, tmp_path, monkeypatch, capsys
):
    from kdep_bench.cli import run_suite
    from kdep_bench.engine import machine

    monkeypatch.setattr(machine, "_installed_gpus", lambda: 2)
    work = tmp_path / "w"
    assert run_suite.main(["smoke", f"--gpus={gpus}", "--work-dir", str(work), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out
    assert not work.exists()


@pytest.mark.parametrize(  # installed: number of GPUs of the machine; None: unknown
    ("installed", "gpus", "refused"),
    [(2, "0,1", False), (2, "", False), (2, "GPU-5a", False), (0, "GPU-5a", True),
     (0, "0", True), (None, "5", False)],
)  # fmt: skip
def test_a_gpu_is_refused_only_if_it_is_known_to_be_missing(installed, gpus, refused, monkeypatch):
    from kdep_bench.engine import machine
    from kdep_bench.errors import KdepError

    monkeypatch.setattr(machine, "_installed_gpus", lambda: installed)
    context = pytest.raises(KdepError) if refused else contextlib.nullcontext()
    with context:
        machine.check_installed(machine.parse_gpus(gpus))


def test_an_unknown_executor_is_refused_before_anything_is_planned(tmp_path, monkeypatch, capsys):
    from kdep_bench.cli import run_suite

    # A Snakemake installation with one executor plugin; the other folder is package metadata.
    snakemake = tmp_path / "bin" / "snakemake"
    packages = tmp_path / "lib/python3.11/site-packages"
    snakemake.parent.mkdir()
    snakemake.touch()
    for name in ("snakemake_executor_plugin_cluster_generic", "snakemake_executor_plugin_x-1.dist"):
        (packages / name).mkdir(parents=True)
    monkeypatch.setenv("KDEP_SNAKEMAKE", str(snakemake))
    options = ["smoke", "--dry-run", "--work-dir", str(tmp_path), "--executor"]
    assert run_suite.main([*options, "slrum"]) == 2
    printed = capsys.readouterr()
    assert "unknown executor 'slrum'; expected one of cluster-generic, local, slurm" in printed.err
    assert not printed.out
    assert run_suite.main([*options, "cluster-generic"]) == 0


def test_a_stage_that_requests_more_gpus_than_available_is_refused(tmp_path, monkeypatch, capsys):
    """Snakemake would never start a job that requests more GPUs than it may use."""
    from kdep_bench.cli import run_suite
    from kdep_bench.engine import machine

    monkeypatch.setattr(machine, "_installed_gpus", lambda: 1)
    suite = (REPO / "configs" / "suites" / "smoke.py").read_text()
    (tmp_path / "wide.py").write_text(suite + '\nsuite["runtime"] = dict(gpus=dict(pretrain=3))\n')
    options = [str(tmp_path / "wide.py"), "--dry-run", "--gpus", "0", "--work-dir", str(tmp_path)]
    assert run_suite.main([*options, "--executor", "snakemake-local"]) == 2
    assert "sets 3 GPUs per pretrain stage, but only 1 can be used" in capsys.readouterr().err
    assert run_suite.main(options) == 0


def hours_of_all_stages(printed: str) -> float:
    """The GPU-hours in the row "all" of a printed forecast."""
    row = next(line for line in printed.splitlines() if line.startswith("all "))
    return float(row.split()[-1].replace(",", ""))


def test_a_suite_over_its_budget_of_gpu_hours_is_refused_or_reduced_to_fit(tmp_path):
    """The test plans only the task cityscapes: this is quick, and all its FLOPs are known."""
    common = ["paper_r18", "--dry-run", "--only", "cityscapes", "--work-dir", str(tmp_path)]
    common += ["--device-rate", "100"]
    unlimited = run(*common)
    total = hours_of_all_stages(unlimited.stdout)
    refused = run(*common, "--budget-hours", f"{total / 2:.1f}")
    assert refused.returncode == 2
    assert f"an estimated {total:,.1f} GPU-hours, from --device-rate" in refused.stderr
    assert run(*common, "--budget-hours", f"{total + 1:.1f}").returncode == 0
    fitted = run(*common, "--budget-hours", f"{total / 2:.1f}", "--fit-budget")
    assert fitted.returncode == 0
    assert 0 < hours_of_all_stages(fitted.stdout) <= total / 2
    assert "not run, comparisons by task: cityscapes" in fitted.stdout
    assert fitted.stdout.count("run   transfer-") < unlimited.stdout.count("run   transfer-")


def test_a_missing_backbone_is_not_printed_as_a_result(tmp_path, capsys):
    """The suite has no tasks, and none of its stages has run."""
    from kdep_bench.cli.run_suite import _collect
    from kdep_bench.engine.local_pool import Outcome
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.plan import build_plan

    suite = load_suite("smoke").model_copy(update={"tasks": [], "claims": [], "variants": []})
    plan = build_plan(suite)
    assert not plan.runs
    object.__setattr__(plan, "probes", [])
    arguments = argparse.Namespace(report=False)
    _collect(arguments, suite, plan, tmp_path, tmp_path / "results", Outcome())
    out = capsys.readouterr().out
    assert "no tasks" in out
    assert "backbone:" not in out

"""`kdep-bench status`, `logs`, `why`, `--json` and completion, with stages written to disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.cli import main
from kdep_bench.engine import state
from kdep_bench.engine.lock import StageLock
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.plan import build_plan

SUITE = """suite = dict(
    name="little",
    data="smoke",
    teacher="efficientnet_lite0",
    students=["resnet18_w32"],
    methods=["kdep"],
    tasks=["smoke_probe", "smoke_seg"],
    budget=dict(epochs={epochs}, batch=8, optimizer=dict(type="SGD", lr=0.1)),
    seeds=dict(pretrain=[0], transfer=[0]),
)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite for one epoch."""
    return write_suite(tmp_path / "little.py", 1)


def write_suite(path: Path, epochs: int) -> Path:
    """Writes the suite with this number of epochs; returns its file."""
    path.write_text(SUITE.format(epochs=epochs))
    return path


def plan_of(suite: Path) -> Plan:
    """The plan of the suite in this file."""
    return build_plan(load_suite(str(suite)))


def finish(work: Path, stage: Stage) -> None:
    """Writes the stage.json of a finished stage without files."""
    out = work / stage.id
    out.mkdir(parents=True, exist_ok=True)
    record = dict(
        schema=state.SCHEMA,
        id=stage.id,
        kind=stage.kind,
        version=stage.version,
        finished="2026-01-01T00:00:00Z",
        wall_s=1.0,
        peak_rss=1,
        files={},
        outputs={},
        spec=dict(stage.spec),
        needs=dict(stage.needs),
        environment={},
    )
    state.write_stage(out, record)


def kinds(plan: Plan) -> dict[str, Stage]:
    """Stage kind -> the last stage of this kind; the last transfer is the segmentation task."""
    return {s.kind: s for s in plan.stages.values()}


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard output of a command that succeeds."""
    assert main.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_status_shows_the_state_of_every_stage(suite, tmp_path, capsys):
    plan, work = plan_of(suite), tmp_path / "work"
    stages = kinds(plan)
    finish(work, stages["views"])  # stays done, although its input `prepare` is missing
    (work / stages["cache"].id).mkdir()
    (work / stages["align"].id).mkdir()
    (work / stages["align"].id / state.FAILED).write_text('{"error": "no space"}')
    # `stages` has one stage per kind; the other transfer stage is not in it.
    damaged = next(i for i in plan.stages if i not in {s.id for s in stages.values()})
    finish(work, plan.stages[damaged])
    (work / damaged / state.STAGE).write_text("{}")
    lock = StageLock(work, stages["pretrain"].id)
    (work / stages["pretrain"].id).mkdir()
    assert lock.take()
    try:
        status = json.loads(output(capsys, "status", suite, "--work-dir", work, "--json"))
        text = output(capsys, "status", suite, "--work-dir", work)
        without_suite = output(capsys, "status", "--work-dir", work)
    finally:
        lock.free()
    states = {row["id"]: (row["state"], row["detail"]) for row in status["stages"]}
    assert states.keys() == plan.stages.keys()
    assert states[stages["views"].id] == ("done", "")
    assert states[stages["cache"].id][0] == "interrupted"
    assert states[stages["align"].id] == ("failed", "no space")
    assert states[stages["pretrain"].id][0] == "running"
    assert f"process {os.getpid()}" in states[stages["pretrain"].id][1]
    assert states[stages["export"].id][0] == "left"
    assert states[damaged][0] == "damaged"
    left = len(plan.stages) - 5  # one stage in each of the other five states
    counts = f"{len(plan.stages)} stages, 1 done, 1 running, 1 failed, 1 interrupted, 1 damaged, "
    counts += f"{left} left"
    assert f"little: {counts}" in text
    assert f"failed       {stages['align'].id}  no space" in text
    assert "5 stages, 1 done, 1 running, 1 failed, 1 interrupted, 1 damaged\n" in without_suite


def test_a_finished_suite_whose_inputs_were_removed_has_nothing_left(suite, tmp_path, capsys):
    plan, work = plan_of(suite), tmp_path / "work"
    for run in plan.runs:
        finish(work, plan.stages[run.id])
    counts = json.loads(output(capsys, "status", suite, "--work-dir", work, "--json"))["counts"]
    assert (counts["done"], counts["left"], counts["skipped"]) == (2, 0, len(plan.stages) - 2)


def test_why_names_the_change_and_its_first_cause(suite, tmp_path, capsys):
    work = tmp_path / "work"
    for stage in plan_of(suite).stages.values():
        finish(work, stage)
    before = kinds(plan_of(suite))
    assert "is done" in output(capsys, "why", suite, before["export"].id, "--work-dir", work)
    write_suite(suite, 3)
    after = kinds(plan_of(suite))
    explanation: dict[str, Any] = json.loads(
        output(capsys, "why", suite, "pretrain", "--work-dir", work, "--json")
    )
    assert explanation["action"] == "run"
    assert explanation["compared_with"] == before["pretrain"].id
    assert "budget.epochs 1.0 -> 3.0" in explanation["changes"]
    assert explanation["first_causes"] == []
    assert {row["action"] for row in explanation["inputs"]} == {"done"}
    text = output(capsys, "why", suite, after["transfer"].id, "--work-dir", work)
    cause = next(line for line in text.splitlines() if line.startswith("first cause"))
    assert after["pretrain"].id in cause
    assert "spec changed: budget.epochs 1.0 -> 3.0" in cause
    assert f"change       export: {before['export'].id} -> {after['export'].id}" in text


def test_why_lists_all_matching_stages_if_several_match(suite, tmp_path, capsys):
    assert main.main(["why", str(suite), "transfer", "--work-dir", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    for run in plan_of(suite).runs:
        assert run.id in error


def test_a_pattern_with_a_wrong_letter_is_answered_with_the_nearest_ids(suite, tmp_path, capsys):
    work = ("--work-dir", str(tmp_path / "w"))
    pretraining = kinds(plan_of(suite))["pretrain"].id
    for pattern in (pretraining.replace("kdep", "kdpe"), "pretrian*", "pretrian"):
        assert main.main(["why", str(suite), pattern, *work]) == 2
        assert f"did you mean {pretraining}? Or list the stages" in capsys.readouterr().err
    assert main.main(["run", str(suite), "--dry-run", "--only", "pretrian*", *work]) == 2
    assert "did you mean pretrain? Or list the ids" in capsys.readouterr().err
    assert main.main(["why", str(suite), "nonsense", *work]) == 2
    assert "Fix: list the stages" in capsys.readouterr().err


def test_a_dry_run_lists_the_same_stages_as_text_and_as_json(suite, tmp_path, capsys):
    work = tmp_path / "work"
    finish(work, kinds(plan_of(suite))["views"])
    arguments = ("run", suite, "--dry-run", "--work-dir", work)
    lines = output(capsys, *arguments).splitlines()
    dry_run = json.loads(output(capsys, *arguments, "--json"))
    rows = [f"{row['action']:4s}  {row['id']}" for row in dry_run["stages"]]
    assert len(rows) == dry_run["counts"]["run"] + 1  # `views` is done
    assert all(line.startswith(row) for line, row in zip(lines, rows, strict=False))
    assert main.main(["run", str(suite), "--json"]) == 2
    assert "--json works only with" in capsys.readouterr().err


@pytest.mark.parametrize("listed", main.LISTS)
def test_a_list_has_the_same_names_as_text_and_as_json(listed, capsys):
    lines = output(capsys, listed).splitlines()
    rows = json.loads(output(capsys, listed, "--json"))
    if listed == "methods":  # this list is a table: it has a heading, and a column for the name
        lines, names = lines[1:], [row["method"] for row in rows]
    else:
        names = [row["name"] for row in rows]
    assert names == [line.split()[0] for line in lines]


def test_logs_prints_the_last_lines_of_the_only_matching_log(suite, tmp_path, capsys):
    stages, work = kinds(plan_of(suite)), tmp_path / "work"
    for kind in ("pretrain", "export"):
        (work / stages[kind].id).mkdir(parents=True)
        log = work / stages[kind].id / state.LOG
        log.write_bytes(b"".join(b"line %d\n" % i for i in range(9)) + b"\xff end")
    path = work / stages["pretrain"].id / state.LOG
    last_lines = output(capsys, "logs", "pretrain", "--work-dir", work, "--lines", 2)
    assert last_lines == f"{path}\nline 8\n\\xff end\n"
    complete_log = output(capsys, "logs", stages["export"].id, "--work-dir", work, "--lines", 0)
    assert complete_log.count("\nline ") == 9
    assert main.main(["logs", "little", "--work-dir", str(work)]) == 2  # in no stage id
    assert main.main(["logs", "kdep", "--work-dir", str(work)]) == 2
    assert "2 stages with a log" in capsys.readouterr().err
    assert main.main(["logs", "kdep", "--work-dir", str(tmp_path / "gone")]) == 2
    assert "gone does not exist. Fix: run a suite first" in capsys.readouterr().err


def test_status_and_why_import_no_torch_and_take_under_1_5_s_of_cpu_time(suite, tmp_path):
    for command in (["status", str(suite)], ["why", str(suite), "pretrain"], ["status"]):
        (tmp_path / "w").mkdir(exist_ok=True)
        code = (
            "import sys, resource; from kdep_bench.cli.main import main\n"
            f"main({[*command, '--work-dir', str(tmp_path / 'w')]!r})\n"
            "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
            "print(usage.ru_utime + usage.ru_stime, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        cpu_seconds, has_imported_torch = done.stdout.splitlines()[-1].split()
        assert has_imported_torch == "False"
        assert float(cpu_seconds) < 1.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sta"], {"status"}),
        (["run", "smo"], {"smoke"}),
        (["status", "--wo"], {"--work-dir"}),
        (["cle"], {"clean"}),
    ],
)
def test_bash_completes_commands_suites_and_options(words, expected, tmp_path):
    from kdep_bench.cli.completion import script

    file = tmp_path / "completion.bash"
    file.write_text(script("bash"))
    typed = " ".join(["kdep-bench", *words])
    code = (
        f'source {file}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; COMP_LINE="{typed}"; '
        f"COMP_POINT={len(typed)}; "
        "eval \"$(complete -p kdep-bench | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\"; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert set(done.stdout.split()) == expected, done.stderr

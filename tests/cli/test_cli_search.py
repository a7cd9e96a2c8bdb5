"""`kdep-bench search`: the best trial is also found from the log; errors; interruption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.cli import search as command
from kdep_bench.search.run import Interrupted, Score


def score(proposal: dict[str, Any], epochs: float, size: Any) -> Score:
    """A score that is known in closed form and needs no training."""
    return Score(proposal["method.transform.n"] - 1 / epochs - size.params / 1e6)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for temporary folders; trials are scored by `score`."""
    monkeypatch.setattr(command, "_stages", lambda *_: score)
    return ["--work-dir", str(tmp_path / "work"), "--out", str(tmp_path / "students")]


def test_replaying_the_log_prints_the_best_student_of_the_live_search(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(tmp_path / "log.jsonl")
    live = ["smoke_kdep", "--log", log, "--trials", "5", *folders]
    assert command.main([*live, "--dry-run"]) == 0
    assert "5 trials (0 done)" in capsys.readouterr().out
    assert not Path(log).exists()
    assert command.main(live) == 0
    *lines, last_line = capsys.readouterr().out.splitlines()
    assert last_line.startswith(f"wrote {tmp_path / 'students' / 'resnet_'}")
    for replay in (["--replay", log], ["smoke_kdep", "--replay", log, *folders]):
        assert command.main(replay) == 0
        assert capsys.readouterr().out.splitlines() == lines[-2:]  # the summary has two lines
    assert command.main(live) == 0
    assert "exists already" in capsys.readouterr().out
    assert command.main(["smoke_kdep", "--seed", "1", "--replay", log, *folders]) == 2
    assert "belongs to another search: seed 0 -> 1" in capsys.readouterr().err
    with open(log, "a") as file:
        file.write('{"trial"')  # an incomplete line
    code = (
        "import sys; from kdep_bench.cli.search import main; "
        f"assert not main(['--replay', {log!r}]); "
        "assert not {'torch', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == lines[-2:]
    assert "the last line of" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke_kdpe"], "unknown search 'smoke_kdpe'"),
        (["smoke_kdep", "--trials", "0"], "trials = 0"),
        (["--replay", "gone.jsonl"], "the log gone.jsonl does not exist"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_search_exits_with_128_plus_the_signal(
    tmp_path: Path, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Score:
        raise Interrupted(2)

    monkeypatch.setattr(command, "_stages", lambda *_: interrupt)
    log = str(tmp_path / "log.jsonl")
    assert command.main(["smoke_kdep", "--log", log, *folders]) == 130

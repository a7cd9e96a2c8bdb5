"""The examples of CONTRIBUTING.md, written into an empty folder, and the suite that uses them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
GUIDE = (REPO / "CONTRIBUTING.md").read_text()

pytestmark = pytest.mark.e2e


def files() -> dict[str, str]:
    """The files of the guide: path -> content."""
    return dict(re.findall(r"```python\n# file: (\S+)\n(.*?)```", GUIDE, re.DOTALL))


def test_the_guide_has_an_example_of_every_kind_of_component() -> None:
    folders = {name.split("/")[1] for name in files() if name.startswith("configs/")}
    assert folders >= {"methods", "teachers", "tasks", "probes", "suites", "searches"}
    assert "tools/make_student.py" in GUIDE


def test_the_suite_of_the_guide_runs_with_the_examples(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "KDEP_CONFIGS": str(tmp_path / "configs"),
    }
    results = tmp_path / "results"
    work = ["--work-dir", str(tmp_path / "work")]

    def run(tool: str, *arguments: str) -> str:
        command = [sys.executable, str(REPO / "tools" / tool), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run("run_suite.py", "trial", *work, "--results-dir", str(results))
    records = [json.loads(p.read_text()) for p in results.glob("records/*.json")]
    with_transfer = "pre-trained by kdep, transferred with small_maps"
    pretrained = {"cosine_kdep", "cosine_bright", "kdep", "scratch"}
    assert {r["arm"]["method"] for r in records} == {*pretrained, with_transfer}
    assert {r["status"] for r in records} == {"ok"}
    with_teacher = [r for r in records if r["arm"]["method"] != "scratch"]
    assert {r["teacher"]["name"] for r in with_teacher} == {"pixels"}
    assert "mean length" in (results / "leaderboard.md").read_text()

    log = str(tmp_path / "log.jsonl")
    live = run("search.py", "trial_search", "--log", log, *work).splitlines()
    # The summary has two lines; the last line of a search names the config that it wrote.
    assert run("search.py", "--replay", log).splitlines() == live[-3:-1]
    written = Path(live[-1].removeprefix("wrote "))
    assert written.parent == tmp_path / "configs" / "students"
    (tmp_path / "configs" / "suites" / "trial.py").write_text(
        files()["configs/suites/trial.py"].replace('"resnet18_w32"', f'"{written.stem}"')
    )
    assert written.stem in run("run_suite.py", "trial", "--dry-run", *work)

"""The smoke suite end to end, from real packages to the leaderboard, and a rerun."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TASKS = {"smoke_probe", "smoke_finetune", "smoke_photos", "smoke_det", "smoke_seg"}

pytestmark = pytest.mark.e2e


def run_suite(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the smoke suite with its folders below `home`."""
    return subprocess.run(
        [
            sys.executable,
            str(REPO / "tools/run_suite.py"),
            str(REPO / "configs/suites/smoke.py"),
            f"--work-dir={home / 'work'}",
            f"--results-dir={home / 'results'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke suite has run."""
    home = tmp_path_factory.mktemp("smoke")
    start = time.perf_counter()
    done = run_suite(home)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(f"smoke suite: {time.perf_counter() - start:.0f} s")
    return home


def records(home: Path) -> list[dict]:
    """All records of the suite."""
    return [json.loads(p.read_text()) for p in sorted(home.glob("results/**/records/*.json"))]


def test_every_run_has_a_record_of_status_ok_with_all_weights_loaded(home: Path):
    all_records = records(home)
    assert {r["task"]["name"] for r in all_records} == TASKS
    assert {r["arm"]["method"] for r in all_records} == {"kdep", "supervised", "scratch"}
    assert len(all_records) == 15  # five tasks, three methods
    for r in all_records:
        assert r["status"] == "ok"
        assert r["gate"]["coverage"] == 1.0
        assert 0 <= r["value"] <= 1
        assert r["stages"]["transfer"] == r["id"]


def test_only_supervised_uses_labels_and_only_kdep_uses_the_teacher(home: Path):
    for r in records(home):
        assert r["arm"]["labels_used"] == (r["arm"]["method"] == "supervised")
        assert (r["teacher"] is not None) == (r["arm"]["method"] == "kdep")


def test_the_teacher_ran_once_per_image_and_view(home: Path):
    (cache,) = home.glob("work/cache-*/stage.json")
    outputs = json.loads(cache.read_text())["outputs"]
    assert outputs["forwards"] == outputs["rows"]


def test_each_exported_student_has_a_model_card(home: Path):
    for folder in home.glob("work/export-*"):
        content = json.loads((folder / "stage.json").read_text())
        text = (folder / "README.md").read_text()
        assert content["outputs"]["checksum"] in text
        assert "about" not in content["spec"]  # passed to the stage, but not part of its id
        has_teacher = "kdep" in folder.name
        assert ("| licence of the teacher | Apache-2.0 |" in text) == has_teacher
        assert ("| teacher's checksum |" in text) == has_teacher


# Bounds of each score: after a few steps on tiny data they are near chance.
SCORE_BOUNDS = {
    "smoke_probe": (0.04, 0.30),
    "smoke_finetune": (0.04, 0.30),
    "smoke_photos": (0.38, 0.66),
    "smoke_det": (0.0, 0.08),
    "smoke_seg": (0.05, 0.13),
}


def test_scores_are_within_their_bounds_on_any_processor(home: Path):
    for r in records(home):
        low, high = SCORE_BOUNDS[r["task"]["name"]]
        assert low <= r["value"] <= high, (r["id"], r["value"])
        assert r["cost"]["processor_units"]


def test_every_score_follows_from_its_per_sample_outputs(home: Path):
    from kdep_bench.results.records.validate import validate

    (folder,) = {p.parents[1] for p in home.glob("results/**/records/*.json")}
    findings = validate(folder)
    assert findings.faults == []
    assert "15 of 15 scores were computed again from per-sample outputs" in findings.notes


def test_tables_and_page_are_written_with_a_warning(home: Path):
    (board,) = home.glob("results/**/leaderboard.md")
    text = board.read_text()
    assert all(task in text for task in TASKS)
    for name in ("leaderboard.md", "leaderboard.csv", "index.html", "leaderboard.tex"):
        assert "the scores mean nothing" in (board.parent / name).read_text()
    for name in ("leaderboard.csv", "index.html"):
        assert (board.parent / name).stat().st_size > 500


def test_a_second_run_does_nothing_and_a_dry_run_takes_under_1_5_s(home: Path):
    start = time.perf_counter()
    second_run = run_suite(home)
    assert second_run.returncode == 0
    assert "0 finished in this run" in second_run.stdout or "nothing to run" in second_run.stdout, (
        second_run.stdout
    )
    assert time.perf_counter() - start < 3
    start = time.perf_counter()
    dry_run = run_suite(home, "--dry-run")
    assert "0 to run" in dry_run.stdout
    assert time.perf_counter() - start < 1.5

"""tools/gpu_check.py: errors about unsuitable machines, time limits, and every check on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json
from kdep_bench.gpu_check import run
from kdep_bench.gpu_check.arm import prediction_interval, scores
from kdep_bench.gpu_check.base import Check, Measurements, Setting, checks
from kdep_bench.gpu_check.machine import MachineInfo, usable
from kdep_bench.gpu_check.pack import locked_requirements, make_pack
from kdep_bench.gpu_check.report import write_report

REPO = Path(__file__).resolve().parents[2]
TOOL = REPO / "tools/gpu_check.py"


def machine_info(**changes: Any) -> MachineInfo:
    """A machine with one usable GPU, but for these changes."""
    card = {"number": "0", "name": "A", "free_gib": 70.0, "total_gib": 80.0}
    known = dict(torch="2.11", built_for="13.0", driver="580", has_library=True, is_available=True)
    return MachineInfo(**{**known, "gpus": [card], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(built_for=None, is_available=False), "CPU build"),
        (dict(is_available=False, has_library=False, driver=None), "no NVIDIA driver"),
        (
            dict(is_available=False, warning="The NVIDIA driver on your system is too old"),
            "too old",
        ),
        (dict(is_available=False, warning="", gpus=[]), "finds no GPU"),
        (dict(gpus=[{"number": "0", "name": "A", "free_gib": 1.0}]), "no GPU has 12 GiB free"),
    ],
)
def test_a_machine_that_cannot_be_checked_raises_kdep_error(changes: Any, message: str):
    with pytest.raises(KdepError, match=message):
        usable(machine_info(**changes))


def test_gpus_without_enough_free_memory_are_not_used():
    cards = [
        {"number": str(k), "name": "A", "free_gib": free} for k, free in enumerate((70, 2, 60))
    ]
    assert usable(machine_info(gpus=cards)) == ("0", "2")


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_without_a_driver_the_command_prints_one_line_and_exits_with_2(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, TOOL, "--out", tmp_path / "o"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--device cpu" in done.stderr
    assert not (tmp_path / "o").exists()


def test_the_prediction_interval_of_three_runs_is_that_of_student_s_t():
    low, high = prediction_interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653, times sqrt(1 + 1/3)
    assert (low, high) == pytest.approx((2 - 4.968276, 2 + 4.968276), abs=1e-5)
    for values in ([1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(KdepError, match="two or more different"):
            prediction_interval(values)


def test_only_complete_records_are_compared(tmp_path: Path):
    (tmp_path / "records").mkdir()
    for k, (status, value) in enumerate((("ok", 0.3), ("ok", 0.5), ("failed", None))):
        record = {"status": status, "value": value, "arm": {"method": "m"}, "task": {"name": "t"}}
        (tmp_path / f"records/{k}.json").write_text(json.dumps(record))
    assert scores(tmp_path) == {("m", "t"): [0.3, 0.5]}


# ---- time limits ----


def measure_then_hang(setting: Setting, measurements: Measurements) -> None:
    """A check that records a figure and then hangs."""
    measurements.figure("before the hang", 7, "s")
    time.sleep(60)


def crash(setting: Setting, measurements: Measurements) -> None:
    """A check whose process ends with status 9."""
    measurements.claim("before the crash", True, 1, "1")
    os._exit(9)


def refuse(setting: Setting, measurements: Measurements) -> None:
    """A check that raises a KdepError."""
    raise KdepError("no such thing", expected="it", fix="bring it")


def run_check(function: Any, tmp_path: Path, limit: float = 30.0) -> dict[str, Any]:
    """The result of this check, run in a process with a time limit in seconds."""
    check = Check("c", 1, 9, 1, function)
    running = run.Running.start("c", check, "cpu", (), True, tmp_path, limit)
    (ended,) = run._wait([running])
    return ended.result()


def test_measurements_before_the_time_limit_are_kept(tmp_path: Path):
    start = time.monotonic()
    result = run_check(measure_then_hang, tmp_path, 2.0)
    assert time.monotonic() - start < 20
    assert result["status"] == "interrupted"
    assert result["figures"] == [{"what": "before the hang", "value": 7.0, "unit": "s"}]


def test_a_failing_check_does_not_stop_the_others(tmp_path: Path):
    crashed = run_check(crash, tmp_path)
    assert (crashed["status"], crashed["claims"][0]["ok"]) == ("failed", True)
    assert "status 9" in crashed["why"]
    refused = run_check(refuse, tmp_path)
    assert refused["why"] == "no such thing; expected it. Fix: bring it."


def test_checks_for_which_no_time_is_left_are_named(tmp_path: Path):
    result = run.run_checks(
        "cpu", (), tmp_path, quick=True, budget=0.001, print_line=lambda _: None
    )
    assert list(result["checks"]) == list(checks())
    assert {c["status"] for c in result["checks"].values()} == {"left out"}
    assert read_json(tmp_path / run.RESULT) == result
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("left out: 0 s were left") == len(checks())


def test_a_claim_that_does_not_hold_is_shown_and_fails(tmp_path: Path):
    measurements = Measurements(
        Setting("cuda", ("0",), False, tmp_path, tmp_path, tmp_path / "p.json")
    )
    measurements.claim("holds", True, 0.5, "<= 1")
    measurements.claim("a | b", False, 2.0, "<= 1")
    check = {"title": "t", "status": "done", "seconds": 1.0, "claims": measurements.claims}
    result = {"device": "cuda", "quick": False, "checks": {"t": check}}
    write_report(result, tmp_path / "gpu.md")
    page = (tmp_path / "gpu.md").read_text()
    assert "| t | done | 1 of 2 | 1 |" in page
    assert "| a \\| b | 2 | <= 1 | **no** |" in page
    assert "mean nothing" not in page
    assert run.failed(result) == 1
    assert run.failed({"checks": {"t": {"status": "interrupted"}}}) == 1


# ---- the pack: a folder with the check and its requirements, to copy to a GPU machine ----


def test_the_pack_has_the_versions_of_requirements_lock():
    rows = locked_requirements(REPO / "requirements.lock")
    assert "mmdet==3.3.0" in rows
    assert not [r for r in rows if r.startswith(("torch==", "nvidia", "numpy=="))]


def test_a_pack_is_never_written_into_a_folder_that_is_not_empty(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(KdepError, match="not empty"):
        make_pack(tmp_path, REPO)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# ---- every check, on a CPU ----


@pytest.mark.e2e
def test_every_check_runs_on_a_cpu(tmp_path: Path):
    command = [sys.executable, TOOL, "--device", "cpu", "--quick", "--out", tmp_path]
    done = subprocess.run(
        [*command, "--budget", "900"], capture_output=True, text=True, check=False
    )
    result = read_json(tmp_path / "gpu_check.json")
    reasons = {}
    for name, check in result["checks"].items():
        failed_claims = [claim for claim in check.get("claims", ()) if not claim["ok"]]
        reasons[name] = (check["status"], check.get("why"), failed_claims)
    assert done.returncode == 0, f"{reasons}\n{done.stdout}{done.stderr}"
    assert {c["status"] for c in result["checks"].values()} == {"done"}
    assert "mean nothing" in (tmp_path / "gpu.md").read_text()

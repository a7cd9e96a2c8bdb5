"""Mutation test: each of ten faults, planted in a copy of the package, makes a test fail.

A fault whose source line no longer exists is an error.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.planted.run import REPO, file_of, plant
from tests.planted.table import FAULTS


@pytest.mark.e2e
def test_no_planted_fault_passes_unnoticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted.run"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("noticed  ") == len(FAULTS)
    assert "UNNOTICED" not in done.stdout


def test_faults_cover_seven_kinds_and_each_changes_exactly_one_line() -> None:
    assert len(FAULTS) == 10
    assert {f.kind for f in FAULTS} == {
        "the split that is scored",
        "order and mode",
        "which value of the metric is read",
        "labels",
        "randomness",
        "identity",
        "reports",
    }
    for fault in FAULTS:
        # `file_of` raises LookupError unless the line exists exactly once.
        assert file_of(REPO, fault).is_file()
        assert fault.old != fault.new


def test_a_missing_or_repeated_line_is_an_error_with_its_location(tmp_path: Path) -> None:
    """The fault must not be skipped and counted as noticed."""
    (tmp_path / "kdep_bench").mkdir()
    (tmp_path / "kdep_bench/a.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "kdep_bench/moved.py").write_text("z = 3\n")
    fault = replace(FAULTS[0], file="kdep_bench/a.py", old="y = 2", new="y = 1")
    copy = plant(tmp_path, fault, tmp_path / "copy")
    assert (copy / "kdep_bench/a.py").read_text() == "x = 1\ny = 1\n"
    assert (tmp_path / "kdep_bench/a.py").read_text() == "x = 1\ny = 2\n"
    with pytest.raises(LookupError, match=r"a\.py contains 'z = 3' 0 times.*kdep_bench/moved\.py"):
        file_of(tmp_path, replace(fault, old="z = 3"))
    with pytest.raises(LookupError, match=r"a\.py contains ' = ' 2 times, expected once"):
        file_of(tmp_path, replace(fault, old=" = "))
    with pytest.raises(LookupError, match="elsewhere: nowhere"):
        file_of(tmp_path, replace(fault, file="kdep_bench/gone.py", old="no such line"))

"""Every command of tools/ with a reader that has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
GONE = 128 + signal.SIGPIPE


def unread(*command: str) -> tuple[int, str]:
    """Exit code and standard error of a Python program whose standard output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *command],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
            cwd=REPO,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("tool", sorted((REPO / "tools").glob("*.py")), ids=lambda p: p.stem)
def test_a_reader_that_left_is_no_traceback(tool: Path) -> None:
    code, said = unread(str(tool), "--help")
    assert code in (0, GONE)  # argparse forgives a write that fails at once, without a buffer
    assert said == ""


def test_nor_in_the_middle_of_a_long_output() -> None:
    """Output beyond the buffer fails inside `main`, where OSErrors are taken for a full disk."""
    code = "from kdep_bench.console import leave\nleave(lambda: print('x' * 100_000))"
    assert unread("-c", code) == (GONE, "")
    assert unread("tools/run_suite.py", "paper_r18", "--dry-run") == (GONE, "")


def test_ctrl_c_is_a_word_and_no_traceback() -> None:
    code = "import signal; from kdep_bench.console import leave; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); "  # nohup has it ignored
    code += "leave(lambda: signal.raise_signal(signal.SIGINT))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize(
    ("main", "code"),
    [("lambda: 3", 3), ("lambda: None", 0), ("lambda: exit(4)", 4), ("lambda: 1 / 0", 1)],
)
def test_a_command_s_own_end_is_kept(main: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from kdep_bench.console import leave; leave({main})"],
        capture_output=True,
        check=False,
        cwd=REPO,
    )
    assert done.returncode == code
    assert (b"ZeroDivisionError" in done.stderr) == ("/ 0" in main)

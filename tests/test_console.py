"""Commands of tools/ with a broken pipe, a full disk, a closed stream or another locale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SIGPIPE_EXIT = 128 + signal.SIGPIPE
TOOLS = sorted((REPO / "tools").glob("*.py"))


def run_unread(*command: str) -> tuple[int, str]:
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


@pytest.mark.parametrize("tool", TOOLS, ids=lambda p: p.stem)
def test_a_broken_pipe_prints_no_traceback(tool: Path) -> None:
    code, output = run_unread(str(tool), "--help")
    assert code in (0, SIGPIPE_EXIT)  # argparse ignores a write that fails
    assert output == ""


def test_a_broken_pipe_in_the_middle_of_long_output_prints_no_traceback() -> None:
    """Output beyond the buffer fails inside `main`, where an OSError would mean a full disk."""
    code = "from kdep_bench.console import run_main\nrun_main(lambda: print('x' * 100_000))"
    assert run_unread("-c", code) == (SIGPIPE_EXIT, "")
    assert run_unread("tools/run_suite.py", "paper_r18", "--dry-run") == (SIGPIPE_EXIT, "")


def test_ctrl_c_prints_no_traceback() -> None:
    code = "import signal; from kdep_bench.console import run_main; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); "  # nohup ignores it
    code += "run_main(lambda: signal.raise_signal(signal.SIGINT))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted\n")


def shell(command: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a shell command line with redirections."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        cwd=REPO,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("tool", TOOLS, ids=lambda p: p.stem)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_command_whose_output_is_lost_never_ends_with_0(tool: Path, unbuffered: str) -> None:
    """Without `run_main`: 0 or 120 on a full disk, with a traceback; 0 with a closed stream."""
    for stream, message in ((">/dev/full", "No space left"), (">&-", "standard output is closed")):
        code, output = shell(f"$PYTHON {tool} --help {stream}", PYTHONUNBUFFERED=unbuffered)
        assert code == 1
        assert message in output
        assert len(output.splitlines()) == 1


def test_a_full_disk_during_long_output_prints_one_line() -> None:
    code, output = shell("$PYTHON tools/run_suite.py paper_r18 --dry-run >/dev/full")
    assert code == 1
    assert len(output.splitlines()) == 1
    code, output = shell("$PYTHON tools/run_suite.py --list suites >/dev/full")
    assert (code, len(output.splitlines())) == (1, 1)


def test_a_closed_stderr_changes_neither_the_exit_code_nor_a_file(tmp_path: Path) -> None:
    """Otherwise the next opened file gets the file number 2, and libraries print into it."""
    assert shell("$PYTHON tools/run_suite.py --list suites 2>&- >/dev/null")[0] == 0
    assert shell("$PYTHON tools/run_suite.py nothing 2>&- >/dev/null")[0] == 2
    assert shell("$PYTHON tools/run_suite.py nothing 2>/dev/full")[0] in (1, 2)
    script = tmp_path / "s.py"  # its exit code is 1 if the opened file gets a number up to 2
    script.write_text(
        "import os\nfrom kdep_bench.console import run_main\n"
        f"run_main(lambda: os.open({str(tmp_path / 'data')!r}, os.O_CREAT | os.O_WRONLY) <= 2)\n"
    )
    code, _ = shell(f"PYTHONPATH={REPO} $PYTHON {script} 0<&- 2>&-")
    assert code == 0


@pytest.mark.parametrize(
    "locale",
    [
        dict(LC_ALL="C"),
        dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        dict(LC_ALL="POSIX", PYTHONIOENCODING="ascii"),
        dict(LC_ALL="C", PYTHONIOENCODING="latin-1"),
    ],
    ids=str,
)
def test_commands_work_in_a_locale_without_utf8(tmp_path: Path, locale: dict[str, str]) -> None:
    config = tmp_path / "s.py"
    config.write_text("suite = dict(name='é', about='± — ü')\n", encoding="utf-8")
    script = tmp_path / "m.py"
    script.write_text(
        "from pathlib import Path\nfrom kdep_bench.console import run_main\n"
        f"run_main(lambda: print(Path({str(config)!r}).read_text(), '\u00b1 \u2014'))\n"
    )
    for command in (
        f"PYTHONPATH={REPO} $PYTHON {script}",
        f"$PYTHON tools/report.py {REPO / 'results' / 'nowhere'}",
        f"$PYTHON tools/run_suite.py {config} --dry-run",
        "$PYTHON tools/run_suite.py smoke --dry-run --work-dir /tmp/none",
        "$PYTHON tools/run_suite.py --list methods",
    ):
        code, output = shell(f"{command} >/dev/null", **locale)
        assert "Traceback" not in output
        assert "UnicodeEncodeError" not in output
        assert code == (2 if "report" in command or "s.py" in command else 0)


def test_a_file_system_error_prints_one_line() -> None:
    code, output = shell(
        '$PYTHON -c "from kdep_bench.console import run_main; '
        "run_main(lambda: open('/proc/none/x'))\""
    )
    assert code == 1
    assert "the file /proc/none/x could not be written or read" in output
    assert "Fix: correct the path" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("main", "code"),
    [("lambda: 3", 3), ("lambda: None", 0), ("lambda: exit(4)", 4), ("lambda: 1 / 0", 1)],
)
def test_the_exit_code_of_a_command_is_kept(main: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from kdep_bench.console import run_main; run_main({main})"],
        capture_output=True,
        check=False,
        cwd=REPO,
    )
    assert done.returncode == code
    assert (b"ZeroDivisionError" in done.stderr) == ("/ 0" in main)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda p: p.stem)
def test_outside_the_environment_a_command_says_to_activate_it(tool: Path) -> None:
    """With -S, Python finds no installed packages, like a system's Python without them."""
    arguments = {"search": ["pocket_kdep"], "report": ["results/pocket"]}
    arguments |= {"make_student": ["timm/resnet18"], "prepare_data": ["--list"]}
    command = [sys.executable, "-S", str(tool), *arguments.get(tool.stem, [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "activate the environment: source .venv/bin/activate" in text

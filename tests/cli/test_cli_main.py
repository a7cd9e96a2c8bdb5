"""The program kdep-bench: help, lists, a user's configs, and an installed wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kdep_bench.cli import main
from kdep_bench.engine import machine
from kdep_bench.errors import KdepError
from kdep_bench.paths import CONFIGS, ROOT
from kdep_bench.suite import config


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_prints_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main.main([command, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: kdep-bench {command}" in capsys.readouterr().out


@pytest.mark.parametrize("listed", main.LISTS)
def test_every_list_is_printed(listed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([listed]) == 0
    assert capsys.readouterr().out.count("\n") >= 2


def test_for_an_unknown_command_a_similar_one_is_suggested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["reprot"]) == 2
    assert "report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "pocket", "--dryrun"], "unknown option '--dryrun'. Fix: did you mean --dry-run?"),
        (["run", "pocket", "--jbos", "4", "--plan"], "2. unknown option '--plan'"),
        (["report", "--idnex=x"], "unknown option '--idnex'. Fix: did you mean --index?"),
        (
            ["data", "imagenet", "DIR"],
            "unexpected argument 'DIR'. Fix: pass the folder",
        ),
        (["doctor", "nosuite"], "'nosuite'. Fix: pass a suite as --suite NAME"),
        (["why", "smoke", "x", "y"], "'y'. Fix: remove it; kdep-bench why --help lists"),
    ],
)
def test_the_error_for_an_unknown_argument_says_what_to_write(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_begin_with_the_command_that_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_folder = ["--work-dir", str(tmp_path / "none")]
    for command in ("work-dir", "clean", "status", "logs"):
        names = ["x"] if command == "logs" else []
        assert main.main([command, *names, *no_folder]) == 2
        assert capsys.readouterr().err.startswith(f"kdep-bench {command}: the work dir ")
    with pytest.raises(SystemExit):
        main.main(["work-dir", "--delete"])
    assert "--delete works only with --gc. Fix: add --gc" in capsys.readouterr().err


def user_configs(folder: Path, name: str) -> Path:
    """A folder of configs with one method, copied from the project's kdep."""
    (folder / "methods").mkdir(parents=True)
    text = (CONFIGS / "methods" / "kdep.py").read_text()
    (folder / "methods" / f"{name}.py").write_text(text)
    return folder


def test_configs_in_a_user_s_folder_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDEP_CONFIGS", str(user_configs(tmp_path / "mine", "my_kdep")))
    assert "my_kdep" in config.names("method")
    assert config.resolve("method", "my_kdep")["align"] == config.resolve("method", "kdep")["align"]


def test_a_user_s_config_with_the_name_of_another_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDEP_CONFIGS", str(user_configs(tmp_path / "mine", "kdep")))
    with pytest.raises(KdepError, match="two method configs are named 'kdep'"):
        config.names("method")


def test_a_missing_folder_of_configs_gives_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDEP_CONFIGS", str(tmp_path / "gone"))
    with pytest.raises(KdepError, match=r"KDEP_CONFIGS.* Fix: correct the variable"):
        config.names("method")


def test_an_installed_wheel_reports_no_git_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert machine.git_revision()
    monkeypatch.setattr(machine, "IS_INSTALLED", True)
    assert machine.git_revision() == ""


@pytest.mark.slow
def test_an_installed_wheel_plans_a_suite_in_an_empty_folder_and_finds_a_plug_in(
    tmp_path: Path,
) -> None:
    built = tmp_path / "wheel"
    sources = tmp_path / "sources"  # a copy, as the build leaves folders next to the sources
    for name in ("kdep_bench", "configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    # Left by an earlier build; it must not get into the wheel.
    old_build_file = sources / "build" / "lib" / "kdep_bench" / "suite" / "gone.py"
    old_build_file.parent.mkdir(parents=True)
    old_build_file.write_text("")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(sources)]
    subprocess.run([*pip, *options], check=True)
    (wheel,) = built.glob("kdep_bench-*.whl")
    site = tmp_path / "site"  # stands for site-packages
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not (site / "configs").exists()
    assert not (site / "kdep_bench" / "suite" / "gone.py").exists()
    user_configs(site / "my_plugin", "my_kdep")
    dist_info = site / "my_plugin-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text("[kdep_bench.configs]\nmine = my_plugin\n")
    (site / "my_plugin" / "__init__.py").write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    user_configs(empty / "configs", "local_kdep")

    def run_command(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from kdep_bench.cli.main import console; console()", *args],
            cwd=empty,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(site)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = run_command("methods")
    assert "my_kdep" in listed
    assert "local_kdep" in listed
    plan = run_command("run", "smoke", "--dry-run")
    assert "prepare-smoke" in plan

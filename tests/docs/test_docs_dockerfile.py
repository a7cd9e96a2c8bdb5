"""The Dockerfile copies existing files and uses the commands of README and pyproject.toml.

No image is built: Docker is not needed to run the tests.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(keyword, arguments) of each instruction, with continued lines joined."""
    text = (REPO / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(keyword, rest) for keyword, rest in pairs]


def arguments_of(keyword: str) -> list[str]:
    """The arguments of every instruction with this keyword."""
    return [rest for name, rest in instructions() if name == keyword]


def copied_sources() -> list[str]:
    """Every path that is copied from the repository."""
    return [name for rest in arguments_of("COPY") for name in rest.split()[:-1]]


def test_the_dockerfile_has_only_known_instructions() -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert {keyword for keyword, _ in instructions()} <= known


@pytest.mark.parametrize("name", copied_sources())
def test_every_copied_source_is_in_the_repository_and_not_ignored(name: str) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--", name], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout
    assert tracked, f"{name} is not tracked"
    ignored = (REPO / ".dockerignore").read_text().split("\n")
    patterns = [p for p in ignored if p and not p.startswith("#")]
    assert not any(fnmatch.fnmatch(name, p) for p in patterns)


def test_every_file_that_make_install_reads_is_copied() -> None:
    rule = (REPO / "Makefile").read_text().partition("$(VENV)/.installed:")[2].partition("\n\n")[0]
    required = {*rule.splitlines()[0].split(), "Makefile", "setup.py"}
    readme = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["readme"]
    assert required | {readme, "kdep_bench", "configs"} <= set(copied_sources())


def test_the_dockerfile_uses_the_commands_of_the_readme() -> None:
    readme = (REPO / "README.md").read_text()
    commands = [part.strip() for rest in arguments_of("RUN") for part in rest.split("&&")]
    assert "make install" in commands
    assert "make install && source .venv/bin/activate" in readme
    assert "ENV PATH=/app/.venv/bin:${PATH}" in (REPO / "Dockerfile").read_text()
    (command,) = arguments_of("CMD")
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(command)[0] in scripts


def test_the_base_image_has_the_python_version_of_the_lock() -> None:
    arguments = dict(rest.split("=", 1) for rest in arguments_of("ARG"))
    assert arguments["BASE"].startswith("python:3.11-")
    assert "Python 3.11" in (REPO / "requirements.lock").read_text().splitlines()[0]
    assert arguments_of("FROM") == ["${BASE}"]


def test_the_container_does_not_run_as_root() -> None:
    assert arguments_of("USER")[-1] not in ("root", "0")

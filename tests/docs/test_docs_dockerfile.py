"""The Dockerfile copies what exists, and installs and starts what README and pyproject.toml say.

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


def of(keyword: str) -> list[str]:
    return [rest for k, rest in instructions() if k == keyword]


def sources() -> list[str]:
    return [name for rest in of("COPY") for name in rest.split()[:-1]]


def test_every_instruction_is_one_of_docker() -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert {keyword for keyword, _ in instructions()} <= known


@pytest.mark.parametrize("name", sources())
def test_every_copied_source_is_in_the_repository_and_not_ignored(name: str) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--", name], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout
    assert tracked, f"{name} is not tracked"
    ignored = (REPO / ".dockerignore").read_text().split("\n")
    patterns = [p for p in ignored if p and not p.startswith("#")]
    assert not any(fnmatch.fnmatch(name, p) for p in patterns)


def test_what_make_install_reads_is_copied() -> None:
    rule = (REPO / "Makefile").read_text().partition("$(VENV)/.installed:")[2].partition("\n\n")[0]
    needed = {*rule.splitlines()[0].split(), "Makefile", "setup.py"}
    readme = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["readme"]
    assert needed | {readme, "kdep_bench", "configs"} <= set(sources())


def test_its_commands_are_those_of_the_readme() -> None:
    readme = (REPO / "README.md").read_text()
    commands = [part.strip() for rest in of("RUN") for part in rest.split("&&")]
    assert "make install" in commands
    assert "make install && source .venv/bin/activate" in readme
    assert "ENV PATH=/app/.venv/bin:${PATH}" in (REPO / "Dockerfile").read_text()
    (command,) = of("CMD")
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(command)[0] in scripts


def test_the_base_image_is_pinned_to_a_python_that_the_lock_is_for() -> None:
    arguments = dict(rest.split("=", 1) for rest in of("ARG"))
    assert arguments["BASE"].startswith("python:3.11-")
    assert "Python 3.11" in (REPO / "requirements.lock").read_text().splitlines()[0]
    assert of("FROM") == ["${BASE}"]


def test_it_does_not_run_as_root() -> None:
    assert of("USER")[-1] not in ("root", "0")

"""Notebooks are committed without outputs, and name only functions and files that exist.

`make notebooks` runs them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def sources(path: Path, kind: str) -> list[str]:
    """The sources of a notebook's cells of a kind."""
    content = json.loads(path.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == kind]


def test_every_notebook_is_run_by_make_notebooks_and_linked_in_the_guide() -> None:
    text = (HERE / "run.py").read_text()
    assert {p.stem for p in NOTEBOOKS} == set(
        ast.literal_eval(text.partition("ORDER = ")[2].partition(")")[0] + ")")
    )
    guide = (HERE.parent / "python.md").read_text()
    assert all(f"notebooks/{p.name}" in guide for p in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_not_committed(path: Path) -> None:
    for block in json.loads(path.read_text())["cells"]:
        assert not block.get("outputs")
        assert block.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_imported_name_exists(path: Path) -> None:
    tree = ast.parse("\n".join(sources(path, "code")))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert any(n.module and n.module.startswith("kdep_bench") for n in imports)
    for node in imports:
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            submodule = (
                importlib.util.find_spec(f"{node.module}.{alias.name}")
                if hasattr(module, "__path__")
                else None
            )
            assert hasattr(module, alias.name) or submodule, f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_lead_to_files_and_the_text_says_that_smoke_scores_mean_nothing(path: Path) -> None:
    text = "\n".join(sources(path, "markdown"))
    assert "scores mean\nnothing**" in text or "scores mean nothing**" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (HERE / link).is_file(), link

"""Packages import only from packages below them, and no files import each other in a circle.

Imports inside functions are part of the first rule, but not of the second.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
# From the lowest to the highest; packages on one line may not import each other.
LAYERS = (
    ("ops", "schedules"),
    ("openmmlab",),
    ("data",),
    ("results",),
    ("networks",),
    ("teachers",),
    ("students",),
    ("features",),
    ("augments",),
    ("objectives",),
    ("pretrain",),
    ("transfer",),
    ("probes",),
    ("suite",),
    ("forecast",),
    ("engine",),
    ("search",),
    ("benchmark",),
    ("gpu_check",),
    ("cli",),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
# The same for the packages inside `results`.
RESULTS_HEIGHT = {
    n: i for i, n in enumerate(("records", "statistics", "board", "claims", "report"))
}


def module_of(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(p): p for p in sorted((REPO / "kdep_bench").rglob("*.py"))}


def imports_of(name: str, top_level: bool = False) -> set[str]:
    """Modules of kdep_bench that a module imports; with `top_level`, only outside functions."""
    tree = ast.parse(FILES[name].read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    imported: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            imported |= {a.name for a in node.names if a.name in FILES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdep_bench"):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                imported.add(submodule if submodule in FILES else str(node.module))
    return imported & set(FILES)


def package(name: str) -> str:
    """The package of a module, one level below kdep_bench; '' for a file beside the packages."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHT else ""


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_module_imports_from_a_package_above_it(name: str) -> None:
    for other in imports_of(name):
        if package(name) and package(other) and package(name) != package(other):
            assert HEIGHT[package(other)] < HEIGHT[package(name)], f"{name} imports {other}"
        if name.startswith("kdep_bench.results.") and other.startswith("kdep_bench.results."):
            importing, imported = name.split(".")[2], other.split(".")[2]
            # All packages may import the files beside them (-1), and these may import all (9).
            low, high = RESULTS_HEIGHT.get(imported, -1), RESULTS_HEIGHT.get(importing, 9)
            assert low <= high, f"{name} imports {other}"


def test_every_package_has_a_layer() -> None:
    packages = {p.parent.name for p in (REPO / "kdep_bench").glob("*/__init__.py")}
    assert packages == set(HEIGHT)


def test_no_files_import_each_other_in_a_circle() -> None:
    waiting = {name: imports_of(name, top_level=True) - {name} for name in FILES}
    while free := [name for name, needed in waiting.items() if not needed & set(waiting)]:
        for name in free:
            del waiting[name]
    assert not waiting, f"circle among {sorted(waiting)}"

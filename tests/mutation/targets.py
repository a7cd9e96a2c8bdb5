"""The files in which faults are planted, by package, and the tests named after a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[2]


class Package(NamedTuple):
    """`files` are globs inside kdep_bench/; `sample` faults are planted; `tests` are folders."""

    files: tuple[str, ...]
    sample: int
    tests: tuple[str, ...]


# The code that computes the scores and their statistics. Not here: probes and searches, code that
# only draws, prints or downloads, and the generator of the pocket data (a hash checks its output).
PACKAGES: dict[str, Package] = {
    "schedules": Package(("schedules/*.py",), 20, ("tests/schedules",)),
    "objectives": Package(("objectives/*.py",), 52, ("tests/objectives",)),
    "features": Package(("features/*.py",), 52, ("tests/features",)),
    "results": Package(
        (
            "results/records/record.py",
            "results/statistics/*.py",
            "results/claims/*.py",
            "results/board/*.py",
        ),
        60,
        ("tests/results",),
    ),
    "pretrain": Package(
        (
            "pretrain/stream.py",
            "pretrain/loop.py",
            "pretrain/teaching.py",
            "pretrain/distiller.py",
            "pretrain/stage.py",
            "pretrain/assemble.py",
            "pretrain/checkpoint.py",
            "pretrain/diagnostics.py",
            "pretrain/pyramid.py",
            "pretrain/train.py",
        ),
        52,
        ("tests/pretrain",),
    ),
    "transfer": Package(("transfer/*.py",), 56, ("tests/transfer",)),
    "data": Package(
        (
            "data/fractions.py",
            "data/splits.py",
            "data/own/*.py",
            "data/views.py",
            "data/official/*.py",
        ),
        60,
        ("tests/data",),
    ),
    "suite": Package(
        (
            "suite/graph.py",
            "suite/plan.py",
            "engine/state.py",
            "suite/kinds.py",
            "engine/collect.py",
            "forecast/rates.py",
        ),
        52,
        ("tests/suite", "tests/engine", "tests/forecast"),
    ),
}


def files(package: str, root: Path = REPO) -> list[str]:
    """Paths from the root of the repository, sorted."""
    names: set[str] = set()
    for pattern in PACKAGES[package].files:
        names |= {p.relative_to(root).as_posix() for p in (root / "kdep_bench").glob(pattern)}
    return sorted(f for f in names if not f.endswith("/__init__.py"))


def mirrors(file: str, test: str) -> bool:
    """Whether the name of the test file `test` contains that of the module `file`."""
    return Path(file).stem in Path(test).stem

"""A Slurm for this folder's tests, or the reason why there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SUITE = HERE.parent / "suite"
sys.path.insert(0, str(SUITE))

from slurm import Slurm, why_not  # noqa: E402

from kdep_bench.errors import KdepError  # noqa: E402
from kdep_bench.suite.cluster import find_snakemake  # noqa: E402


@pytest.fixture(scope="session")
def snakemake() -> Iterator[str]:
    """Snakemake's program; stages find the toy functions."""
    try:
        found = find_snakemake()
    except KdepError as e:
        pytest.skip(str(e))
    with pytest.MonkeyPatch.context() as patch:
        path = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(SUITE), str(HERE), path) if p))
        yield found


@pytest.fixture(scope="session")
def slurm(snakemake: str) -> Iterator[Slurm]:
    if why_not():
        pytest.skip(why_not())
    with Slurm() as cluster:
        yield cluster

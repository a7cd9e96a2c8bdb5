"""Fixtures: a real Slurm cluster, or a skip with the reason why none can be started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).resolve().parent
ENGINE = HERE.parent / "engine"
sys.path.insert(0, str(ENGINE))

from slurm import Slurm, missing_requirement, sweep  # noqa: E402

from kdep_bench.engine.cluster import find_snakemake  # noqa: E402
from kdep_bench.errors import KdepError  # noqa: E402


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test; fails it under `make slurm-test`, which must have a cluster."""
    if os.environ.get("KDEP_SLURM_TEST"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def snakemake() -> Iterator[str]:
    """Path of the snakemake program; PYTHONPATH lets its jobs import the fake stages."""
    try:
        program = find_snakemake()
    except KdepError as e:
        skip_or_fail(str(e))
    with pytest.MonkeyPatch.context() as patch:
        path = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(ENGINE), str(HERE), path) if p))
        yield program


@pytest.fixture(scope="session")
def slurm(snakemake: str) -> Iterator[Slurm]:
    """A Slurm cluster of three nodes."""
    sweep()
    if missing_requirement():
        skip_or_fail(missing_requirement())
    with Slurm() as cluster:
        yield cluster

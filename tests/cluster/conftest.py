"""A Slurm for this folder's tests, or the reason why there is none."""

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

from slurm import Slurm, sweep, why_not  # noqa: E402

from kdep_bench.engine.cluster import find_snakemake  # noqa: E402
from kdep_bench.errors import KdepError  # noqa: E402


def without(why: str) -> NoReturn:
    """Skips what needs it; where a cluster was asked for (make slurm-test), fails."""
    if os.environ.get("KDEP_SLURM_TEST"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def snakemake() -> Iterator[str]:
    """Snakemake's program; stages find the toy functions."""
    try:
        found = find_snakemake()
    except KdepError as e:
        without(str(e))
    with pytest.MonkeyPatch.context() as patch:
        path = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(ENGINE), str(HERE), path) if p))
        yield found


@pytest.fixture(scope="session")
def slurm(snakemake: str) -> Iterator[Slurm]:
    sweep()
    if why_not():
        without(why_not())
    with Slurm() as cluster:
        yield cluster

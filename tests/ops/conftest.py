"""Fixtures for tests of the stand-in: torchvision's operators in place of mmcv's compiled ones."""

from __future__ import annotations

import pytest
import torch

from kdep_bench import ops

ops.install()


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU and, where there is one, a GPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def require_stand_in() -> None:
    """Skips the tests where a compiled mmcv is installed."""
    if ops.backend() != "torchvision":
        pytest.skip("a compiled mmcv is installed; these tests are for the torchvision stand-in")

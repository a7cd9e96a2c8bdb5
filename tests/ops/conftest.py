"""Every test of this folder uses the stand-in, on the CPU and, where there is one, on CUDA."""

from __future__ import annotations

import pytest
import torch

from kdep_bench import ops

ops.install()


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _stand_in() -> None:
    if ops.backend() != "torchvision":
        pytest.skip("a compiled mmcv is installed; these tests are of its stand-in")

"""The fork server does not initialise GPUs, and each stage sees only its own (no GPU is needed)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdep_bench import devices
from kdep_bench.engine import environment
from kdep_bench.errors import KdepError

# torch's NVML call is replaced: it reports one GPU. A call of the driver raises an error.
SERVER = """
import os, sys, torch
def driver(): raise AssertionError("the driver was initialised in the fork server")
torch._C._cuda_getDeviceCount = driver
torch.cuda._raw_device_count_nvml = lambda: 1
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
import kdep_bench.engine.preload as preload
from kdep_bench.devices import show_gpus
print("server", preload.FAILURE or "loaded", torch.cuda.is_initialized())
for gpus in ((), ("0",), ("7",)):
    sys.stdout.flush()
    if os.fork() == 0:
        show_gpus(gpus)
        from mmcv.utils import IS_CUDA_AVAILABLE
        from mmengine.device import get_device
        print(*gpus, get_device(), IS_CUDA_AVAILABLE, torch.cuda.device_count(),
              torch.cuda._is_in_bad_fork())
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_only_stages_and_not_the_fork_server_initialise_the_driver():
    # Without `hide_gpus` the import itself raises here, and `_is_in_bad_fork` is True in each
    # child: torch records that the driver was asked before the fork, even without a GPU.
    done = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "server loaded False",
        "cpu False 0 False",
        "0 cuda True 1 False",
        "7 cpu False 0 False",
    ], done.stderr[-2000:]


def test_a_gpu_that_torch_cannot_use_is_reported(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    devices.check_gpus(())
    with pytest.raises(KdepError, match=r"assigned GPU 1, but torch .* finds no GPU"):
        devices.check_gpus(("1",))


def test_gpu_memory_of_a_stage_is_reported_only_with_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    assert environment.peak_gpu() == {}
    assert environment.largest_peak([{}, {"peak_rss": 5}]) == {}
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: 7)
    assert environment.peak_gpu() == {"peak_gpu": 7}
    assert environment.largest_peak([{}, {"peak_gpu": 3}, {"peak_gpu": 9}]) == {"peak_gpu": 9}


def test_a_stage_uses_the_number_of_cores_that_it_was_assigned(monkeypatch):
    monkeypatch.setenv("KDEP_CPUS", "3")
    assert devices.cores() == 3
    monkeypatch.delenv("KDEP_CPUS")
    assert devices.cores() >= 1


def test_every_rank_of_a_node_computes_on_its_own_gpu(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for available, rank, device in (
        (False, "1", "cpu"),
        (True, None, "cuda"),
        (True, "0", "cuda:0"),
        (True, "3", "cuda:3"),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        else:
            monkeypatch.delenv("LOCAL_RANK")
        assert str(devices.compute_device()) == device

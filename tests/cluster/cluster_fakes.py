"""Fake stages that run as several processes or hold GPUs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_fakes as fakes

from kdep_bench.suite.graph import Plan, add_stage
from kdep_bench.suite.kinds import StageKind

DATA = [0.5, -1.0, 2.0, 3.5, 0.0, 1.0, -2.5, 4.0]  # its mean is the optimum of `descend`
LEARNING_RATE = 0.1
KINDS = {
    **fakes.KINDS,
    "ddp": StageKind("cluster_fakes:descend", 1, resumable=True, ddp=True, timeout=600, memory=800),
    "gpu": StageKind("cluster_fakes:devices", 1, gpu=True, timeout=60, memory=500),
}


def ddp(**spec: Any) -> Plan:
    """One stage of two gloo processes."""
    plan = Plan("ddp")
    add_stage(plan, "ddp", "d", {"steps": 8, **spec}, kinds=KINDS, processes=2)
    return plan


def descend(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Gradient descent on mean (w - x)^2 in DDP with gloo; each rank has a part of the data.

    For a number of ranks that divides the 8 values, w_k = m + (w_0 - m) (1 - 2 lr)^k, where m is
    the mean of the data. Resumes from `w.json`, which holds [steps done, w]. who-RANK.json
    describes each process.
    """
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    process_info: dict[str, Any] = {
        k: os.environ.get(k) for k in ("SLURMD_NODENAME", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
    }
    process_info |= {"pid": os.getpid(), "agent": os.getppid()}  # agent: the launcher of the ranks
    # {pid, cpu_s} of the process that imported torch, see ddp_preload.py; None without preloading
    process_info["importer"] = getattr(sys.modules.get("ddp_preload"), "IMPORTER", None)
    partial = out / f".who-{rank}.tmp"
    partial.write_text(json.dumps(process_info))
    partial.replace(out / f"who-{rank}.json")
    model = torch.nn.Linear(1, 1, bias=False).double()
    saved = out / "w.json"
    first_step, weight = json.loads(saved.read_text()) if saved.exists() else (0, 0.0)
    dist.barrier()
    with torch.no_grad():
        model.weight.fill_(weight)
    net = torch.nn.parallel.DistributedDataParallel(model)
    data = torch.tensor(DATA[rank::world], dtype=torch.float64)
    for k in range(first_step, spec["steps"]):
        if spec.get("break_rank") == rank and k == 2:
            raise ValueError("a fault of one rank")
        net.zero_grad()
        (net(torch.ones(1, 1, dtype=torch.float64)) - data).square().mean().backward()
        with torch.no_grad():
            model.weight -= LEARNING_RATE * torch.as_tensor(model.weight.grad)
        if rank == 0:
            partial = out / ".w.tmp"
            partial.write_text(json.dumps([k + 1, model.weight.item()]))
            partial.replace(saved)
        progress(k + 1, spec["steps"])
        time.sleep(spec.get("sleep", 0.0))
    dist.barrier()  # a rank that leaves before its peers can make them abort
    dist.destroy_process_group()
    (out / "value.txt").write_text("1")  # every fake stage writes it; dependent fakes sum these
    return {"w": model.weight.item(), "world": world, "resumed_at": first_step}


def expected_weight(steps: int) -> float:
    """The weight that `descend` must have after `steps` steps."""
    mean = sum(DATA) / len(DATA)
    return mean - mean * (1 - 2 * LEARNING_RATE) ** steps


def devices(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Returns the GPUs of the stage, its node and [begin, end] of the time it held them."""
    begun = time.time()
    time.sleep(spec.get("sleep", 0.0))
    return {
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
        "node": os.environ.get("SLURMD_NODENAME"),
        "span": [begun, time.time()],
    }

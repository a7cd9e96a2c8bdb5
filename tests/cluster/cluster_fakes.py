"""Stages that run as several processes, for the cluster's tests."""

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

DATA = [0.5, -1.0, 2.0, 3.5, 0.0, 1.0, -2.5, 4.0]
RATE = 0.1
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
    """Gradient descent on mean (w - x)^2 in DDP with gloo, each rank with its share of the data.

    With full batches w_k = m + (w_0 - m)(1 - 2 rate)^k, m the mean: whatever the number of ranks.
    Resumes from `w.json`.
    """
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    who: dict[str, Any] = {
        k: os.environ.get(k) for k in ("SLURMD_NODENAME", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
    }
    who |= {"pid": os.getpid(), "agent": os.getppid()}
    who["importer"] = getattr(sys.modules.get("ddp_preload"), "IMPORTER", None)
    partial = out / f".who-{rank}.tmp"
    partial.write_text(json.dumps(who))
    partial.replace(out / f"who-{rank}.json")
    model = torch.nn.Linear(1, 1, bias=False).double()
    saved = out / "w.json"
    first, w = json.loads(saved.read_text()) if saved.exists() else (0, 0.0)
    dist.barrier()
    with torch.no_grad():
        model.weight.fill_(w)
    net = torch.nn.parallel.DistributedDataParallel(model)
    data = torch.tensor(DATA[rank::world], dtype=torch.float64)
    for k in range(first, spec["steps"]):
        if spec.get("break_rank") == rank and k == 2:
            raise ValueError("a fault of one rank")
        net.zero_grad()
        (net(torch.ones(1, 1, dtype=torch.float64)) - data).square().mean().backward()
        with torch.no_grad():
            model.weight -= RATE * torch.as_tensor(model.weight.grad)
        if rank == 0:
            partial = out / ".w.tmp"
            partial.write_text(json.dumps([k + 1, model.weight.item()]))
            partial.replace(saved)
        progress(k + 1, spec["steps"])
        time.sleep(spec.get("sleep", 0.0))
    dist.barrier()  # a rank that leaves before its peers can make them abort
    dist.destroy_process_group()
    (out / "value.txt").write_text("1")
    return {"w": model.weight.item(), "world": world, "resumed_at": first}


def expected(steps: int) -> float:
    mean = sum(DATA) / len(DATA)
    return mean - mean * (1 - 2 * RATE) ** steps


def devices(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Tells its GPUs, holding them for a while."""
    begun = time.time()
    time.sleep(spec.get("sleep", 0.0))
    return {
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
        "node": os.environ.get("SLURMD_NODENAME"),
        "span": [begun, time.time()],
    }

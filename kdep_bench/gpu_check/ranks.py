"""Several processes, one per GPU (NCCL; gloo on a CPU): sums, and BatchNorm of the whole batch."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.gpu_check.base import Check, Outcome, Setting

TOLERANCE = 1e-4


def _run(setting: Setting, outcome: Outcome) -> None:
    import torch.multiprocessing as mp

    ranks = len(setting.gpus) if setting.device == "cuda" else 2
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=_rank, args=(k, ranks, setting.device, port, str(setting.folder)))
        for k in range(ranks)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(w.exitcode for w in workers):
        raise KdepError(
            f"the {ranks} processes ended with the exit codes {[w.exitcode for w in workers]}",
            fix="read the log of this check; NCCL_DEBUG=INFO shows the cause of a failed "
            "connection",
        )
    found = [read_json(setting.folder / f"rank{k}.json") for k in range(ranks)]
    wanted = ranks * (ranks + 1) / 2
    outcome.claim(f"sum over {ranks} processes", all(f["sum"] == wanted for f in found),
                  found[0]["sum"], f"{wanted:g}")  # fmt: skip
    worst = max(f["apart"] for f in found)
    outcome.claim("BatchNorm over processes against one process, output and gradient",
                  worst <= TOLERANCE, worst, f"<= {TOLERANCE:g}")  # fmt: skip
    if setting.device == "cuda":
        worst = max(f["apart_torch"] for f in found)
        outcome.claim("torch's SyncBatchNorm against one process", worst <= TOLERANCE, worst,
                      f"<= {TOLERANCE:g}")  # fmt: skip
    outcome.figure(f"all-reduce of 64 MiB over {ranks} processes",
                   max(f["reduce_s"] for f in found) * 1e3, "ms")  # fmt: skip


def _rank(rank: int, ranks: int, device: str, port: int, folder: str) -> None:
    import torch
    from torch import distributed, nn

    from kdep_bench.pretrain.parallel import share_batch_norm

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    place = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", rank=rank, world_size=ranks
    )
    one = torch.tensor(float(rank + 1), device=place)
    distributed.all_reduce(one)

    g = torch.Generator().manual_seed(0)
    x = torch.randn(4 * ranks, 3, 5, 5, generator=g)
    upstream = torch.randn(4 * ranks, 3, 5, 5, generator=g)
    mine = slice(4 * rank, 4 * rank + 4)

    def through(norm: nn.Module, rows: slice) -> tuple[Any, Any]:
        norm = norm.to(place).train()
        given = x[rows].to(place).requires_grad_()
        out = norm(given)
        out.backward(upstream[rows].to(place))
        assert given.grad is not None
        return out.detach(), given.grad

    def apart(got: tuple[Any, Any]) -> float:
        return max(
            float((a - b[mine]).norm() / b[mine].norm()) for a, b in zip(got, want, strict=True)
        )

    want = through(nn.BatchNorm2d(3), slice(None))
    shared = nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norm(shared)
    found: dict[str, float] = {"sum": float(one), "apart": apart(through(shared, mine))}
    if device == "cuda":
        found["apart_torch"] = apart(through(nn.SyncBatchNorm(3), mine))
    big = torch.ones(2**24, device=place)
    distributed.all_reduce(big)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    distributed.all_reduce(big)
    if device == "cuda":
        torch.cuda.synchronize()
    found["reduce_s"] = time.perf_counter() - start
    write_json(Path(folder) / f"rank{rank}.json", found)
    distributed.destroy_process_group()


CHECK = Check("several processes", 50, 60, 15, _run)

"""Check: processes on several GPUs (NCCL; gloo on a CPU): sums, BatchNorm over all of them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.gpu_check.base import Check, Measurements, Setting

TOLERANCE = 1e-4


def _run(setting: Setting, measurements: Measurements) -> None:
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
    by_rank = [read_json(setting.folder / f"rank{k}.json") for k in range(ranks)]
    expected = ranks * (ranks + 1) / 2
    measurements.claim(f"sum over {ranks} processes", all(f["sum"] == expected for f in by_rank),
                  by_rank[0]["sum"], f"{expected:g}")  # fmt: skip
    worst = max(f["apart"] for f in by_rank)
    measurements.claim("BatchNorm over processes against one process, output and gradient",
                  worst <= TOLERANCE, worst, f"<= {TOLERANCE:g}")  # fmt: skip
    if setting.device == "cuda":
        worst = max(f["apart_torch"] for f in by_rank)
        measurements.claim("torch's SyncBatchNorm against one process", worst <= TOLERANCE, worst,
                      f"<= {TOLERANCE:g}")  # fmt: skip
    measurements.figure(f"all-reduce of 64 MiB over {ranks} processes",
                   max(f["reduce_s"] for f in by_rank) * 1e3, "ms")  # fmt: skip


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
    number = torch.tensor(float(rank + 1), device=place)
    distributed.all_reduce(number)

    g = torch.Generator().manual_seed(0)
    x = torch.randn(4 * ranks, 3, 5, 5, generator=g)
    upstream = torch.randn(4 * ranks, 3, 5, 5, generator=g)
    own_rows = slice(4 * rank, 4 * rank + 4)

    def run_norm(norm: nn.Module, rows: slice) -> tuple[Any, Any]:
        norm = norm.to(place).train()
        given = x[rows].to(place).requires_grad_()
        out = norm(given)
        out.backward(upstream[rows].to(place))
        assert given.grad is not None
        return out.detach(), given.grad

    def worst_difference(got: tuple[Any, Any]) -> float:
        return max(
            float((a - b[own_rows]).norm() / b[own_rows].norm())
            for a, b in zip(got, want, strict=True)
        )

    want = run_norm(nn.BatchNorm2d(3), slice(None))
    shared = nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norm(shared)
    measured: dict[str, float] = {
        "sum": float(number),
        "apart": worst_difference(run_norm(shared, own_rows)),
    }
    if device == "cuda":
        measured["apart_torch"] = worst_difference(run_norm(nn.SyncBatchNorm(3), own_rows))
    big = torch.ones(2**24, device=place)
    distributed.all_reduce(big)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    distributed.all_reduce(big)
    if device == "cuda":
        torch.cuda.synchronize()
    measured["reduce_s"] = time.perf_counter() - start
    write_json(Path(folder) / f"rank{rank}.json", measured)
    distributed.destroy_process_group()


CHECK = Check("several processes", 50, 60, 15, _run)

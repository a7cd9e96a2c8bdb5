"""Check: all-reduce and SyncBatchNorm over several processes, one per GPU (on a CPU: two)."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.gpu_check.base import Check, Measurements, Setting

TOLERANCE = 1e-4  # relative L2 difference


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
    all_equal = all(values["sum"] == expected for values in by_rank)
    measurements.claim(f"sum over {ranks} processes", all_equal, by_rank[0]["sum"], f"{expected:g}")
    bound = f"<= {TOLERANCE:g}"
    worst = max(values["difference"] for values in by_rank)
    label = "BatchNorm over processes against one process, output and gradient"
    measurements.claim(label, worst <= TOLERANCE, worst, bound)
    if setting.device == "cuda":
        worst = max(values["difference_torch"] for values in by_rank)
        label = "torch's SyncBatchNorm against one process"
        measurements.claim(label, worst <= TOLERANCE, worst, bound)
    milliseconds = max(values["reduce_s"] for values in by_rank) * 1e3
    measurements.figure(f"all-reduce of 64 MiB over {ranks} processes", milliseconds, "ms")


def _rank(rank: int, ranks: int, device: str, port: int, folder: str) -> None:
    """Body of one process; writes its measurements to rank<k>.json in `folder`."""
    import torch
    from torch import distributed, nn

    from kdep_bench.pretrain.parallel import share_batch_norm

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch_device = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(torch_device)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", rank=rank, world_size=ranks
    )
    number = torch.tensor(float(rank + 1), device=torch_device)
    distributed.all_reduce(number)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * ranks, 3, 5, 5, generator=generator)
    output_gradients = torch.randn(4 * ranks, 3, 5, 5, generator=generator)
    rows_of_rank = slice(4 * rank, 4 * rank + 4)

    def run_norm(norm: nn.Module, rows: slice) -> tuple[Any, Any]:
        """(output, gradient of the input) of a normalisation layer for some rows."""
        norm = norm.to(torch_device).train()
        x = inputs[rows].to(torch_device).requires_grad_()
        out = norm(x)
        out.backward(output_gradients[rows].to(torch_device))
        assert x.grad is not None
        return out.detach(), x.grad

    def worst_difference(results: tuple[Any, Any]) -> float:
        """Largest relative L2 difference from the results of one process."""
        return max(
            float((a - b[rows_of_rank]).norm() / b[rows_of_rank].norm())
            for a, b in zip(results, reference, strict=True)
        )

    reference = run_norm(nn.BatchNorm2d(3), slice(None))
    shared = nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norm(shared)
    measured: dict[str, float] = {
        "sum": float(number),
        "difference": worst_difference(run_norm(shared, rows_of_rank)),
    }
    if device == "cuda":
        torch_norm = run_norm(nn.SyncBatchNorm(3), rows_of_rank)
        measured["difference_torch"] = worst_difference(torch_norm)
    big = torch.ones(2**24, device=torch_device)  # 64 MiB
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


CHECK = Check("several processes", order=50, seconds=60, min_seconds=15, run=_run)

"""Host memory and time of the streaming SVD and of cache reads, each size in a separate process.

A GPU makes no difference: the SVD is fitted on the CPU (stage `align`), and a cache is read from
disk into host memory. GPU memory of stages is recorded in stage.json (`peak_gpu`).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdep_bench.features.cache_read import Cache
from kdep_bench.features.transform import Moments

BLOCK = 4096  # rows of random features that are added to the streaming SVD at once


def peak() -> int:
    """Peak resident memory of this process in bytes.

    Read from /proc, because ru_maxrss includes the peak of the parent process.
    """
    return resident("VmHWM")


def resident(field: str = "RssAnon") -> int:
    """A field of /proc/self/status, in bytes.

    VmRSS is the resident memory; RssAnon excludes the pages of files, because the kernel can free
    those at any time.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function(*args)` in a new process and returns its result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def fit(rows: int, width: int) -> dict[str, float]:
    """Seconds and memory of the streaming SVD of [rows, width] random features.

    Returns:
        `rows`; `pass_s`: seconds of the pass over the rows; `eigh_s`: seconds of the eigenvalue
        decomposition; `extra_bytes`: growth of the resident memory.
    """
    torch.set_num_threads(2)
    block = torch.randn(BLOCK, width, generator=torch.Generator().manual_seed(0)).half()
    moments = Moments(width)
    # VmRSS is the present memory. (The peak so far may be higher, because of the imports.)
    before, start = resident("VmRSS"), time.perf_counter()
    for first in range(0, rows, BLOCK):
        moments.add(block[: min(BLOCK, rows - first)])
    streamed = time.perf_counter() - start
    torch.linalg.eigh(moments.covariance)
    return {
        "rows": rows,
        "pass_s": streamed,
        "eigh_s": time.perf_counter() - start - streamed,
        "extra_bytes": float(peak() - before),
    }


def agreement(rows: int = 3000, width: int = 128, n_directions: int = 32) -> float:
    """Smallest |cosine| between the directions of the streaming SVD and of a full SVD.

    Both are fitted to the same random features [rows, width]; the first `n_directions` are
    compared.
    """
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    x = noise * torch.linspace(3, 0.1, width)
    moments = Moments(width)
    for part in x.split(500):
        moments.add(part)
    streamed = torch.linalg.eigh(moments.covariance)[1].flip(1)[:, :n_directions]
    full = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:n_directions].T
    return float((streamed * full).sum(0).abs().min())


def reads(folder: str, rows: int, width: int, batches: int = 200) -> dict[str, float]:
    """Seconds and memory growth of reading random batches of 64 from [rows, width] features.

    The features are in a file in `folder`, which is removed at the end.
    """
    path = Path(folder) / f"{rows}.npy"
    written = np.lib.format.open_memmap(path, "w+", np.float16, (rows, width))
    for first in range(0, rows, 65536):
        written[first : first + 65536] = np.float16(first % 7)  # any values
    written.flush()
    del written
    shard_rows = 16384
    features = np.load(path, mmap_mode="r")
    shards = [features[k : k + shard_rows] for k in range(0, rows, shard_rows)]
    cache, rng = Cache({}, width, shards), np.random.default_rng(0)
    cache.rows(rng.integers(0, rows, 64))
    before, start = resident(), time.perf_counter()
    for _ in range(batches):
        cache.rows(rng.integers(0, rows, 64))
    seconds = (time.perf_counter() - start) / batches
    grown = resident() - before
    path.unlink()
    return {"rows": rows, "read_s": seconds, "grown_bytes": float(grown)}


def measure(root: Path, quick: bool) -> dict[str, Any]:
    """Measures the SVD at three sizes, its agreement with a full SVD, and reads at two sizes."""
    width = 256 if quick else 2048
    sizes = (4096, 8192, 16384) if quick else (81920, 327680, 1280000)  # ImageNet has 1.28 million
    cached = (10**4, 10**5) if quick else (10**5, 10**6)
    return {
        "svd_width": width,
        "svd": [in_new_process(fit, n, width) for n in sizes],
        "svd_agreement": agreement(),
        "reads": [in_new_process(reads, str(root), n, 256) for n in cached],
    }

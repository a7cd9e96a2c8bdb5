"""Memory and time of the streaming SVD and of cache reads, each size in a separate process.

Host memory only, with or without a GPU: the SVD is fitted in a stage without one (`align`), and a
cache is read from disk into host memory. GPU memory is recorded per stage in stage.json
(`peak_gpu`).
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


def peak() -> int:
    """Peak resident memory of this process in bytes.

    Not ru_maxrss, which a process inherits from its parent.
    """
    return resident("VmHWM")


def resident(field: str = "RssAnon") -> int:
    """A field of /proc/self/status, bytes.

    RssAnon leaves out pages of files, which can be dropped at any time; VmRSS includes them.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def fit(rows: int, width: int) -> dict[str, float]:
    """Seconds and extra memory of one pass over [rows, width] synthetic features and their SVD."""
    torch.set_num_threads(2)
    block = torch.randn(4096, width, generator=torch.Generator().manual_seed(0)).half()
    moments = Moments(width)
    # Relative to present resident memory: an earlier peak, of the imports, may exceed the fit's.
    before, start = resident("VmRSS"), time.perf_counter()
    for first in range(0, rows, 4096):
        moments.add(block[: min(4096, rows - first)])
    streamed = time.perf_counter() - start
    torch.linalg.eigh(moments.covariance)
    return {
        "rows": rows,
        "pass_s": streamed,
        "eigh_s": time.perf_counter() - start - streamed,
        "extra_bytes": float(peak() - before),
    }


def agreement(rows: int = 3000, width: int = 128, keep: int = 32) -> float:
    """Smallest |cosine| between streamed directions and those of the full SVD of the same rows."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64) * torch.linspace(3, 0.1, width)
    moments = Moments(width)
    for part in x.split(500):
        moments.add(part)
    streamed = torch.linalg.eigh(moments.covariance)[1].flip(1)[:, :keep]
    full = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:keep].T
    return float((streamed * full).sum(0).abs().min())


def reads(folder: str, rows: int, width: int, batches: int = 200) -> dict[str, float]:
    """Seconds and memory growth of random batches of 64 from [rows, width] features on disk."""
    path = Path(folder) / f"{rows}.npy"
    made = np.lib.format.open_memmap(path, "w+", np.float16, (rows, width))
    for first in range(0, rows, 65536):
        made[first : first + 65536] = np.float16(first % 7)
    made.flush()
    del made
    shard_rows = 16384
    whole = np.load(path, mmap_mode="r")
    shards = [whole[k : k + shard_rows] for k in range(0, rows, shard_rows)]
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
    """SVD at three sizes, its agreement with the full SVD, and reads at two sizes."""
    width = 256 if quick else 2048
    sizes = (4096, 8192, 16384) if quick else (81920, 327680, 1280000)
    cached = (10**4, 10**5) if quick else (10**5, 10**6)
    return {
        "svd_width": width,
        "svd": [in_new_process(fit, n, width) for n in sizes],
        "svd_agreement": agreement(),
        "reads": [in_new_process(reads, str(root), n, 256) for n in cached],
    }

"""Memory and time of the streaming SVD and of cache reads, each size in a process of its own.

Of the host, with or without a GPU: the SVD is fitted in a stage that has none (`align`), and a
cache is read from disk into the processor's memory. What a GPU holds is no part of it; a stage.json
tells that of its own stage (`peak_gpu`).
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
    """Largest resident memory of this process so far, bytes. Not ru_maxrss, which a process takes
    over from the one that started it."""
    return resident("VmHWM")


def resident(what: str = "RssAnon") -> int:
    """A line of /proc/self/status, bytes: RssAnon leaves out the pages of files, which can be
    dropped at any time; VmRSS has everything."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {what}")


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def fit(rows: int, width: int) -> dict[str, float]:
    """One pass over synthetic rows, then the eigenvectors."""
    torch.set_num_threads(2)
    block = torch.randn(4096, width, generator=torch.Generator().manual_seed(0)).half()
    moments = Moments(width)
    # Against what is resident now: the peak so far may be that of the imports, and hide the fit's.
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
    ours = torch.linalg.eigh(moments.covariance)[1].flip(1)[:, :keep]
    full = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:keep].T
    return float((ours * full).sum(0).abs().min())


def reads(folder: str, rows: int, width: int, batches: int = 200) -> dict[str, float]:
    """Random batches of 64 out of `rows` features on disk."""
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
    """SVD at three sizes of N, its agreement with the full SVD, and reads of two sizes."""
    width = 256 if quick else 2048
    sizes = (4096, 8192, 16384) if quick else (81920, 327680, 1280000)
    cached = (10**4, 10**5) if quick else (10**5, 10**6)
    return {
        "svd_width": width,
        "svd": [apart(fit, n, width) for n in sizes],
        "svd_agreement": agreement(),
        "reads": [apart(reads, str(root), n, 256) for n in cached],
    }

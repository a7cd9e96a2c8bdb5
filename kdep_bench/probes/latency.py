"""Latency and throughput of a backbone on one CPU thread, with torch and with onnxruntime."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kdep_bench.bounds import Counts
from kdep_bench.probes.base import Inputs, Measured, Probe, Value


class Latency(Probe):
    """Median time of a batch of images, from RGB pixels to the pooled feature.

    For every batch size and both runtimes: "ms, <runtime>, batch N" and "images/s, <runtime>, batch
    N". The two runtimes are measured alternately, 20 times each. Other work on the machine slows
    both down, and the numbers depend on the processor, so compare only numbers of one run on an
    idle machine. The weights have no influence.

    Args:
        batches: numbers of images per batch.
    """

    reads = frozenset({"backbone"})

    def __init__(self, batches: Counts = (1, 32)) -> None:
        self.batches = tuple(int(n) for n in batches)

    def measure(self, data: Inputs) -> Measured:
        from kdep_bench.transfer.onnx_file import ONNX, latencies, write_onnx

        assert data.network is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ONNX
            write_onnx(data.network, data.input_px, path)
            measured = latencies(data.network, path, data.input_px, self.batches)
        values = {}
        for row in measured:
            n = int(row["batch"])
            for runtime in ("torch", "onnxruntime"):
                ms = row[f"{runtime}_ms"]
                values[f"ms, {runtime}, batch {n}"] = Value(ms, "smaller")
                values[f"images/s, {runtime}, batch {n}"] = Value(1000 * n / ms, "larger")
        return Measured(values, ("one CPU thread; median of 20 batches",))

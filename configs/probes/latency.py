"""Latency and throughput of the backbone with torch and onnxruntime, one CPU thread."""

from kdep_bench.probes.latency import Latency

probe = dict(
    name="latency",
    about="milliseconds per batch and images per second on one CPU thread, torch and onnxruntime",
    type=Latency,
    batches=(1, 32),
)

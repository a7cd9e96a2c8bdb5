"""Benchmarks of training steps, memory, data hashing and engine; `tools/benchmark.py`."""

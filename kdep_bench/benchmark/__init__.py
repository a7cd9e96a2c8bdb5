"""Benchmarks of training steps, memory, data hashing and the engine; see `tools/benchmark.py`."""

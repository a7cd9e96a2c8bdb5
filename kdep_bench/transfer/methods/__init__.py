"""One transfer method per file; see `kdep_bench.transfer.method`."""

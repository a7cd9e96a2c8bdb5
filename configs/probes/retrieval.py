"""Retrieval among the test images: mean average precision and recall at 1, 5 and 10."""

from kdep_bench.probes.retrieval import Retrieval

probe = dict(name="retrieval", type=Retrieval, folder="classify", at=(1, 5, 10))

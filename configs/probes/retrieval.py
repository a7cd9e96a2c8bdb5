"""Retrieval among the test images: mean average precision and recall at 1, 5 and 10."""

from kdep_bench.probes.retrieval import Retrieval

probe = dict(
    name="retrieval",
    about="each test image as a query among the other test images: mean average precision, recall",
    type=Retrieval,
    folder="classify",
    ranks=(1, 5, 10),
)

"""Similarity (linear CKA) of the feature to the suite's teacher, on 2,048 images of the pool."""

from kdep_bench.probes.cka import Cka

probe = dict(
    name="cka",
    about="similarity of the feature to that of the suite's teacher (linear CKA, unbiased)",
    type=Cka,
    rows=2048,
    teacher="suite",  # the teacher that the suite names
)

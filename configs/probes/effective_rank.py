"""Effective rank and dead dimensions of the feature on the test images; reads no label."""

from kdep_bench.probes.effective_rank import EffectiveRank

probe = dict(
    name="effective_rank",
    about="number of dimensions in which the feature of the test images varies; reads no label",
    type=EffectiveRank,
    folder="classify",
    dead_below=1e-3,
)

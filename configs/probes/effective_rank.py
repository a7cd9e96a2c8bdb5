"""Effective rank and dead dimensions of the feature on the test images; reads no label."""

from kdep_bench.probes.effective_rank import EffectiveRank

probe = dict(name="effective_rank", type=EffectiveRank, folder="classify", dead_below=1e-3)

"""Normalised feature distillation: each channel's spatial pattern of one map, label-free.

Source       arXiv 2207.05256 as one sentence quotes it; the weight is this project's.
Differs      from `kdep` in regressing a map (places count) instead of a pooled feature, with no
             fixed basis: a 1x1 convolution stands between the networks.
"""

from kdep_bench.objectives.nfd import NFD

method = dict(
    name="nfd",
    family="feature",
    labels_used=False,
    reconstruction=True,
    needs=["maps"],
    source="arXiv 2207.05256, as quoted by Liu et al. 2022",
    objective=dict(type=NFD, levels=dict(s16="s16"), weight=10.0),
    align=None,
    transform=None,
)

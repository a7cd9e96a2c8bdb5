"""Normalised feature distillation: each channel's spatial pattern of two maps, label-free.

Source       arXiv 2207.05256 as one sentence quotes it; the weight is this project's.
Differs      from `kdep` in regressing maps (places count) instead of a pooled feature, with no
             fixed basis: a 1x1 convolution stands between the networks. The last level is one of
             the two, or nothing would teach the last stage.
"""

from kdep_bench.objectives.nfd import NFD

method = dict(
    name="nfd",
    family="feature",
    labels_used=False,
    reconstruction=True,
    needs=["maps"],
    source="arXiv 2207.05256, as quoted by Liu et al. 2022",
    objective=dict(type=NFD, levels=dict(s16="s16", s32="s32"), weight=5.0),
    align=None,
    transform=None,
)

"""Normalised feature distillation: the spatial pattern of each channel of two maps, label-free.

Source       arXiv 2207.05256 as quoted in one sentence; the weight is this project's choice.
Differs      from `kdep` in regressing maps (with positions) instead of a pooled feature, through a
             learned 1x1 convolution instead of a fixed basis. The last level is one of the two,
             otherwise the last stage would receive no gradient.
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

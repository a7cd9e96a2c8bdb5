"""Normalised feature distillation: regression of standardised maps at two levels, label-free.

Source       arXiv 2207.05256, as defined in one sentence by Liu et al. 2022; the weight was chosen
             in this project.
Differs      from `kdep` in regressing maps instead of a pooled feature, through a learned 1x1
             convolution instead of a fixed basis. The last level is included, because otherwise no
             loss would train the last stage.
"""

from kdep_bench.objectives.nfd import NFD

method = dict(
    name="nfd",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="arXiv 2207.05256, as quoted by Liu et al. 2022",
    objective=dict(type=NFD, levels=dict(s16="s16", s32="s32"), weight=5.0),
    align=None,
    transform=None,
)

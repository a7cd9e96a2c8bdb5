"""Attention transfer, label-free: the student learns where the teacher's maps are large.

Source       Zagoruyko and Komodakis, ICLR 2017. There it is added to cross-entropy.
Differs      from `fitnets_4` in comparing the spatial pattern of maps instead of their channels,
             without learned projectors; from `afd` in fixed pairs of levels, at strides 4 to 32.
Cost         no extra parameters; a cache of four maps.
"""

from kdep_bench.objectives.map_patterns import SpatialAttention

method = dict(
    name="spatial_attention",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928, equation 2",
    objective=dict(
        type=SpatialAttention, levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"), weight=5.0
    ),
    align=None,
    transform=None,
)

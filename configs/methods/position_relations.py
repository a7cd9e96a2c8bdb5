"""Relations between positions of an image, label-free: cosines of map vectors at strides 8 to 32.

Source       Liu et al., CVPR 2019 (structured knowledge distillation, pair-wise). There it is added
             to cross-entropy and an adversarial loss, for segmentation.
Differs      from `similarity` in comparing the positions of one image, not the images of a batch.
Cost         no extra parameters; a cache of three maps; O(n^2 C) per image with n positions, so
             stride 4 (256 positions at 64 px) is left out.
"""

from kdep_bench.objectives.map_patterns import PositionRelations

method = dict(
    name="position_relations",
    family="relation",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="Liu et al., CVPR 2019, arXiv 1903.04197, section 3.1",
    objective=dict(
        type=PositionRelations, levels=dict(s8="s8", s16="s16", s32="s32"), weight=20 / 3
    ),
    align=None,
    transform=None,
)

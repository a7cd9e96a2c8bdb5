"""The regression term of DMAE for a convolutional student: its last map, at the visible patches.

Source       a variant by this project of Bai et al., CVPR 2023 (`dmae`), which is for transformers.
             In the images of student and teacher, hidden patches have the mean colour. There is no
             loss on pixels, because a convolution mixes visible and hidden patches. alpha is
             100 instead of 1, so that the initial loss is about ten, as for `fitnets`: the step
             of SGD (used here) depends on the scale of the loss, that of AdamW (used by DMAE) does
             not. The last map of the student is used, because with a middle map no loss would
             train the layers after it.
Differs      from `fitnets` in the masks, in the L1 distance of tokens of length 1, and in the
             levels: the student's last map regresses the teacher's map at stride 16.
Cost         one forward pass of the teacher up to its map, counted as a complete pass.
"""

from kdep_bench.augments.mask_patches import MaskPatches
from kdep_bench.objectives.dmae import DmaeMaps

method = dict(
    name="dmae_maps",
    family="feature",
    labels_used=False,
    needs=["layer"],
    source="own form of Bai et al., CVPR 2023; UCSC-VLAA/DMAE",
    objective=dict(type=DmaeMaps, teacher_layer="s16", student_level="s32", alpha=100.0),
    align=None,
    transform=None,
    augment=dict(type=MaskPatches, patch=16, ratio=0.75),
    teacher_source="live",
)

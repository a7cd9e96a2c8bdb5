"""The distance of DMAE for a convolutional student: its last map, at the visible patches.

Source       own form of Bai et al., CVPR 2023 (`dmae`), which has transformers alone. Hidden
             patches have the mean colour in the student's and the teacher's image; no pixels
             are reconstructed, because a convolution sees across the patches' edges.
             alpha is 100 and not 1, so that the first loss is about ten, as that of `fitnets`: the
             suites' SGD follows the scale of a single term, the source's AdamW does not.
             The student's map is its last one and not a middle one, after which no loss would train
             a layer.
Differs      from `fitnets` in the masks, the L1 distance of tokens of length 1, and in the levels:
             the student's last with the teacher's at stride 16.
Cost         a pass of the teacher up to that map, counted as one.
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

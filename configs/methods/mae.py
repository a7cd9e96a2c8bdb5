"""MAE: masked image modelling without teacher or labels, for transformer students.

Source       He et al., CVPR 2022; facebookresearch/mae. Mask ratio and normalised pixels as there,
             but a smaller decoder. The optimiser is the suite's; MAE uses AdamW with learning rate
             1.5e-4 per 256 images, weight decay 0.05, betas 0.9 and 0.95.
Differs      from every other method in using neither a teacher nor labels.
Cost         the student processes a quarter of the patches; the decoder is small. No teacher.
"""

from kdep_bench.augments.mask_patches import MaskPatches
from kdep_bench.objectives.masked_autoencoder import MaskedAutoencoder

method = dict(
    name="mae",
    family="self-supervised",
    labels_used=False,
    label_policy="label-free",
    needs=[],
    source="He et al., CVPR 2022; facebookresearch/mae models_mae.py",
    objective=dict(type=MaskedAutoencoder),
    align=None,
    transform=None,
    augment=dict(type=MaskPatches, patch=16, ratio=0.75),
    students=["vit_t"],
)

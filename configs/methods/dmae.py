"""DMAE: masked autoencoding, and regression of a middle layer of a teacher, on visible patches.

Source       Bai et al., CVPR 2023; UCSC-VLAA/DMAE. From there: mask ratio, L1 distance, weight 1,
             and layers at three quarters of the depth of student and teacher. The decoder is that
             of `mae`. The optimiser is the suite's; DMAE uses AdamW with learning rate 1.5e-4 per
             256 images and weight decay 0.05.
Two forms    The paper's formula compares unscaled features; its code divides every token by its
             length first. The default, `unit_length=True`, follows the code. With
             `unit_length=False` the weight of the term depends on the scale of the teacher's layer.
Differs      from `mae` in the teacher, and from `fitnets` in the masks: only the tokens of
             visible patches and class tokens are compared. The teacher's layers after
             `teacher_layer` are not run, as in the paper; the published code runs them. The teacher
             cannot be cached, because every step has new random masks.
Teacher      a vision transformer with as many patches as the student, 14 x 14 at 224 px: for
             example teacher=dict(base="dinov2_vitb14", input_px=196). `blocks.8` is the ninth of
             its twelve blocks (for clip_vitb16: `encoder.layers.8`). A convolutional teacher gets
             images with a constant colour in the hidden patches: teacher_layer="s16" of
             efficientnet_lite0.
Student      vit_t. For a convolutional student see `dmae_maps`.
Cost         student and teacher process a quarter of the patches, and the teacher a part of its
             layers. The column of forward passes counts this as one pass of the teacher.
"""

from kdep_bench.augments.mask_patches import MaskPatches
from kdep_bench.objectives.dmae import Dmae

method = dict(
    name="dmae",
    family="feature",
    labels_used=False,
    needs=["layer"],
    source="Bai et al., CVPR 2023; UCSC-VLAA/DMAE models_mae_distill.py",
    objective=dict(type=Dmae, teacher_layer="blocks.8", student_block=8, alpha=1.0),
    align=None,
    transform=None,
    augment=dict(type=MaskPatches, patch=16, ratio=0.75),
    teacher_source="live",
    students=["vit_t"],
)

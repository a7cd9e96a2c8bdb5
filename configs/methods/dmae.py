"""DMAE: masked image modelling, and a middle layer of a teacher on the same visible patches.

Source       Bai et al., CVPR 2023; UCSC-VLAA/DMAE. Mask ratio, L1 distance, weight 1 and the layers
             at three quarters of both depths as there; MAE's decoder is that of `mae`. The
             optimiser is the suite's; DMAE uses AdamW at 1.5e-4 per 256 images, weight decay 0.05.
Two forms    The paper's formula compares the projected features as they are, its code after scaling
             every token to length 1. `unit_length=True`, the default, is the code's, whose scores
             are the published ones; with `unit_length=False` the scale of the teacher's layer
             weighs the term.
Differs      from `mae` in the teacher; from `fitnets` in the masks and in what is compared, the
             tokens of the visible patches. The teacher stops after `teacher_layer`, as the paper
             states; the published code runs all of it. It cannot be read from a cache, because the
             patches are drawn in every step.
Teacher      a vision transformer with as many patches as the student, 14 x 14 at 224 px: for
             example teacher=dict(base="dinov2_vitb14", input_px=196); `blocks.8` is the ninth of
             its twelve blocks (`encoder.layers.8` of clip_vitb16). A convolutional teacher sees
             images whose hidden patches have one colour: teacher_layer="s16" of efficientnet_lite0.
Student      vit_t. For a convolutional student, `dmae_maps` is the distance alone.
Cost         student and teacher see a quarter of the patches, and the teacher a part of its
             layers; the column of forward passes counts that as one pass of the teacher.
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

"""Pixel distillation: the teacher sees larger images, which the student's first layer reconstructs.

Source       Guo et al., TPAMI 2024 (arXiv 2112.09532v2), the one-stage form; the authors' code is
             gyguo/PixelDistillation. tau 4 and the weight 10 are its values for half the teacher's
             resolution, as here (64 and 128 pixels); it uses 50 for a quarter.
Differs      from `logit_kd` in the second term: from the output of its first convolution, the
             student must reconstruct the crop at the teacher's resolution. That term trains the
             first convolution only. With any method, the teacher's images are larger than the
             student's if its config has a larger input_px.
Labels       none: alpha is 1, in the paper 0.9. LogitKDWithLabels as the part `logits` has the
             paper's cross-entropy.
Cost         every crop is decoded again in the training step, at the teacher's resolution. The
             teacher is read from its cache. The leaderboard's FLOPs are those of the student at its
             own resolution, which is what the method saves.
"""

from kdep_bench.objectives.image_super_resolution import ImageSuperResolution
from kdep_bench.objectives.logit_kd import LogitKD
from kdep_bench.objectives.weighted_sum import WeightedSum

method = dict(
    name="pixel_distillation",
    family="logit",
    labels_used=False,
    needs=["logits", "teacher_images"],
    source="Guo et al., TPAMI 2024; gyguo/PixelDistillation tools_1_ts/train_isrd_5runs.py",
    objective=dict(
        type=WeightedSum,
        parts=dict(
            logits=dict(objective=dict(type=LogitKD, tau=4.0)),
            image=dict(objective=dict(type=ImageSuperResolution), weight=10.0),
        ),
    ),
    align=None,
    transform=None,
)

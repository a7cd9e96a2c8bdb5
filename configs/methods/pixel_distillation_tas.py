"""Pixel distillation in two stages: first a smaller network, then a smaller image.

Source       re-implemented from the abstract of arXiv 2112.09532v1: a teacher, an assistant with
             the student's architecture and the teacher's resolution, and a student, with a feature
             super-resolution module in the second stage. The module's form is explained in
             FeatureSuperResolution; the weights are those of `pixel_distillation`.
Differs      from `pixel_distillation` in the assistant, which is trained by `logit_kd` on images of
             128 pixels, and in a third term: the reconstructed and the true image are also compared
             by the output of the assistant's first layer.
Labels       none.
Cost         includes a second pre-training, of the assistant, at four times the student's FLOPs per
             image, and the views of all images at 128 pixels. Every crop is decoded again in the
             training step.
"""

from kdep_bench.objectives.image_super_resolution import FeatureSuperResolution
from kdep_bench.objectives.logit_kd import LogitKD
from kdep_bench.objectives.weighted_sum import WeightedSum

method = dict(
    name="pixel_distillation_tas",
    family="logit",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["logits", "teacher_images"],
    source="re-implementation from the abstract of arXiv 2112.09532v1",
    objective=dict(
        type=WeightedSum,
        parts=dict(
            logits=dict(objective=dict(type=LogitKD, tau=4.0)),
            image=dict(objective=dict(type=FeatureSuperResolution), weight=10.0),
        ),
    ),
    align=None,
    transform=None,
    teacher=dict(
        student=dict(base="resnet18_w32", name="resnet18_w32_128px", input_px=128),
        method="logit_kd",
    ),
)

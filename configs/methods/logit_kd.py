"""Logit distillation, label-free: the teacher's class probabilities instead of its feature.

A baseline for the feature methods. It needs a teacher with a classifier. The student's linear head
over the teacher's classes is dropped at export, like that of `supervised`.
"""

from kdep_bench.objectives.logit_kd import LogitKD

method = dict(
    name="logit_kd",
    family="logit",
    labels_used=False,
    needs=["logits"],
    source="Hinton et al. 2015, arXiv 1503.02531; tau of RepDistiller",
    objective=dict(type=LogitKD, tau=4.0),
    align=None,
    transform=None,
)

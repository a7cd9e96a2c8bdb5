"""KDEP with a live teacher on a new random crop of every view in every step.

Source       He et al., CVPR 2022, whose training runs the teacher on every augmented image.
Differs      from `kdep` in the crops, which are new in every epoch. The teacher is run on them, so
             only the alignment uses the cache.
Cost         one forward pass of the teacher per sample.
"""

from kdep_bench.augments.crop import RandomCrop
from kdep_bench.features.transform import PowerTemperature
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="kdep_crops",
    family="feature",
    labels_used=False,
    source="He et al., CVPR 2022; CVMI-Lab/KDEP src/train_distill.py",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=PowerTemperature, T=0.1, n=3.0),
    augment=dict(type=RandomCrop, scale=[0.4, 1.0]),
    teacher_source="live",
)

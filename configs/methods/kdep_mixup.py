"""KDEP with mixup: images are mixed with others of the batch, and cached targets in the same way.

Source       Zhang et al., ICLR 2018 (mixup); KDEP as in `kdep`. alpha is mixup's ImageNet value.
Differs      from `kdep` in the mixed images. The target of a mixed image is the mixture of the two
             cached targets, not the teacher's output for the mixed image.
Cost         as `kdep`.
"""

from kdep_bench.augments.mixup import Mixup
from kdep_bench.features.transform import PowerTemperature
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="kdep_mixup",
    family="feature",
    labels_used=False,
    source="He et al., CVPR 2022; Zhang et al., ICLR 2018",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=PowerTemperature, T=0.1, n=3.0),
    augment=dict(type=Mixup, alpha=0.2),
)

"""KDEP with the target divided by its root mean square: no constant is specific to one teacher.

Source       as `kdep`; the normalisation is by this project. The public code tunes the loss weight
             (3 or 20) and T (0.1, 0.03 or 0.2) per teacher. T only multiplies the target by
             T^(-1/n), so with the normalisation and the automatic loss weight it has no effect.
Differs      from `kdep` only in the normalisation of the target.
Expectation  as `kdep` if the root mean square of its target is near 1.
"""

from kdep_bench.features.transform import PowerTemperature
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="kdep_unit",
    family="feature",
    labels_used=False,
    source="He et al., CVPR 2022, target in units of its root mean square (ours)",
    objective=dict(type=FeatureRegression, weight="auto", unit=True),
    align=dict(type="svd"),
    transform=dict(type=PowerTemperature, T=0.1, n=3.0),
)

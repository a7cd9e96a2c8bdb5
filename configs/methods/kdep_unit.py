"""KDEP with the target in units of its own root mean square: no number is tied to one teacher.

Source       as `kdep`; the unit is ours. The public code tunes the loss weight (3 or 20) and T
             (0.1, 0.03 or 0.2) per teacher; T only multiplies the target by T^(-1/n), so with the
             weight's rule and this unit both are without effect, and n alone shapes the target.
Differs      from `kdep` in the unit of the target alone.
Expectation  as `kdep` where its target's root mean square is near 1.
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

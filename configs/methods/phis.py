"""PHI-S instead of power temperature scaling: the SVD feature rotated to equal channel variances.

Source       Ranzinger et al. 2024, arXiv 2410.01680; NVlabs/RADIO examples/common/phi_s.py. There
             it balances several teachers at full width; here it is applied after the reduction to
             the student's width.
Differs      from `svd` in a rotation and a scale factor. Unlike `kdep`, it has no power function.
Expectation  std ratio 1 after the transform, by construction. The squared error is that of `svd`
             divided by the square of the scale factor. A gain over `svd` can therefore only be due
             to the distribution of the components over channels (BatchNorm acts per channel), or
             to the scale of the target, whose root mean square is 1.
"""

from kdep_bench.features.phi_s import PhiS
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="phis",
    family="feature",
    labels_used=False,
    source="Ranzinger et al., arXiv 2410.01680; NVlabs/RADIO examples/common/phi_s.py",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=PhiS),
)

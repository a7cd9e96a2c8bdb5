"""PHI-S instead of power temperature scaling: the SVD feature rotated to equal channel variances.

Source       Ranzinger et al. 2024, arXiv 2410.01680; NVlabs/RADIO examples/common/phi_s.py. There
             it balances several teachers at full width; here it follows the reduction to Ds
             channels.
Differs      from `svd` in a rotation and one scale, from `kdep` in having no power.
Expectation  Std Ratio 1 after the transform, by construction. With one teacher and a squared error
             the loss is that of `svd` divided by phi^2, so any gain over `svd` comes from how the
             components are distributed over channels (the student's last BatchNorm and the layers
             after it work per channel) or from the scale: the student must reach a root mean square
             of 1, not that of `svd`.
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

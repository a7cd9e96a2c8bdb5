"""PHI-S in place of power temperature scaling: the SVD feature turned until all channels are alike.

Source       Ranzinger et al. 2024, arXiv 2410.01680; NVlabs/RADIO examples/common/phi_s.py. There
             it balances several teachers at full width; here it follows the cut to Ds channels.
Differs      from `svd` by a rotation and one number, from `kdep` by having no power in it.
Expectation  Std Ratio 1 after the transform, by construction. With one teacher and a squared error
             the loss is that of `svd` over phi^2, so any gain over `svd` comes from which channel
             carries what (the student's last BatchNorm and the reader after it work per channel) or
             from the unit: the student must reach a root mean square of 1, not `svd`'s own.
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

"""A random orthonormal basis: the value of an alignment that is independent of the features.

Source       CVMI-Lab/KDEP src/resnet.py, comments "random indice" (random singular vectors there; a
             uniformly random basis here).
Differs      from `svd` only in the alignment: no transform, centred, the same loss weight rule.
Expectation  Ds / Dt of the variance on average, and a low Std Ratio, as all channels are similar
             mixtures.
"""

from kdep_bench.features.aligners import RandomBasis
from kdep_bench.features.transform import NoTransform
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="random_basis",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022; CVMI-Lab/KDEP src/resnet.py, comments",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type=RandomBasis, seed=0),
    transform=dict(type=NoTransform),
)

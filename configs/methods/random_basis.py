"""A random orthonormal basis: a baseline whose alignment does not depend on the features.

Source       CVMI-Lab/KDEP src/resnet.py, comments "random indice", which select random singular
             vectors; here the basis is uniformly random.
Differs      from `svd` only in the alignment.
Expectation  explained variance ratio: the student's width divided by the teacher's, on average. The
             std ratio is low, because all channels are mixtures of all directions.
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

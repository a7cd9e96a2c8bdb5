"""KDEP without power temperature scaling: the unscaled SVD-compressed feature (an ablation)."""

from kdep_bench.features.transform import NoTransform
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="svd",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=NoTransform),
)

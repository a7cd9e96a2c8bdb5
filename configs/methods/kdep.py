"""KDEP (CVPR 2022): regression of the teacher's feature after SVD and power temperature scaling.

Label-free, without learned layers between the networks. T and n are the public code's defaults. The
loss weight is set automatically (`kdep_bench/objectives/weight.py`), not by hand for each teacher.
"""

from kdep_bench.features.transform import PowerTemperature
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="kdep",
    family="feature",
    labels_used=False,
    source="He et al., CVPR 2022; CVMI-Lab/KDEP src/gen_svd_weights.py, src/train_distill.py",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=PowerTemperature, T=0.1, n=3.0),
)

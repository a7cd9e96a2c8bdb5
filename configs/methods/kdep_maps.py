"""KDEP on maps: student maps (strides 16, 32) regress signed pairs of the teacher's components.

Source       this project, after He et al., CVPR 2022: an SVD of the teacher's feature, without a
             projector.
Differs      from `kdep` in the target (every position of two maps instead of a pooled feature) and
             in the student's tap (after the ReLU, the feature that tasks read). This feature is
             never negative, so each component of the target is split into its positive and its
             negative part (a signed pair). Unlike in `fitnets`, no layer between the networks is
             learned.
"""

from kdep_bench.objectives.map_regression import MapRegression

method = dict(
    name="kdep_maps",
    family="feature",
    labels_used=False,
    needs=["maps"],
    source="He et al., CVPR 2022, on maps in signed pairs (ours)",
    objective=dict(
        type=MapRegression,
        levels=dict(s16="s16", s32="s32"),
        weight=20.0,
        sign="pairs",
        n=1.0,
        tap="after",
        pooled=False,
        align=dict(type="svd", policy=None),
    ),
    align=None,
    transform=None,
)

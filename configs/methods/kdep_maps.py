"""KDEP on maps: two levels regress the teacher's maps, reduced by SVD, in signed pairs.

Source       ours; SVD of the teacher's feature without a projector as in He et al., CVPR 2022.
Differs      from `kdep` in the target (every position of two maps, not one pooled feature), in the
             student's tap (after the ReLU, which is the feature that transfers) and therefore in
             the sign: each component is split into its positive and its negative part. From
             `fitnets` in the projectors: here no layer is learned between the networks.
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

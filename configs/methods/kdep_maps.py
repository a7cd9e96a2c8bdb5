"""KDEP on maps: two levels regress the teacher's maps, reduced by SVD, in signed pairs.

Source       ours; SVD of the teacher's feature and no projector as in He et al., CVPR 2022.
Differs      from `kdep` in the space (every place of two maps, not one pooled feature), in the
             student's tap (after the ReLU, which is what transfers) and therefore in the sign: each
             component is given as its positive and its negative part. From `fitnets` in the
             projectors: here nothing is learned between the networks.
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

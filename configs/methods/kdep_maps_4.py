"""KDEP on maps at four levels (strides 4 to 32), without learned layers between the networks.

Source       this project, as `kdep_maps`.
Differs      from `kdep_maps` in two more levels, s4 and s8, with the same sum of loss weights. In
             the suite `kdep_anatomy` it is called `maps_4` and is among the best methods on all
             three tasks; so is `fitnets`, with learned projectors at two levels.
Cost         four maps per view in the teacher's cache, 94 kB with EfficientNet-Lite0 at 128 pixels
             (two levels: 25 kB), or 48 kB with `stored_maps="int8"`. For a large set of images
             use teacher_source="live", which stores no maps.
"""

from kdep_bench.objectives.map_regression import MapRegression

method = dict(
    name="kdep_maps_4",
    family="feature",
    labels_used=False,
    needs=["maps"],
    source="He et al., CVPR 2022, on four maps in signed pairs (ours)",
    objective=dict(
        type=MapRegression,
        levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"),
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

"""VkD (CVPR 2024): a learned orthogonal projector, which only rotates the student's feature.

Source       Miles, Elezi and Deng, arXiv 2403.06213; roymiles/VkD train.py, engine.py.
Differs      from the authors' recipe in what is fixed here for all methods: SGD and its schedule
             instead of AdamW, no label loss, no logit loss, pooled features of a CNN student.
Expectation  between `svd` and `conv1x1` in freedom: the projector is learned, but cannot scale.
"""

from kdep_bench.objectives.vkd import OrthogonalProjection

method = dict(
    name="vkd",
    family="feature",
    labels_used=False,
    source="Miles et al., CVPR 2024, arXiv 2403.06213; roymiles/VkD engine.py",
    objective=dict(type=OrthogonalProjection, weight="auto"),
    align=None,
    transform=None,
)

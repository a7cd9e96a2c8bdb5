"""VkD (CVPR 2024): feature regression through a learned orthogonal projector.

Source       Miles, Elezi and Deng, arXiv 2403.06213; roymiles/VkD train.py, engine.py.
Differs      from the authors' recipe in the settings that are equal for all methods here: SGD and
             its schedule instead of AdamW, no label loss, no logit loss, pooled features of a CNN
             student.
Expectation  between `svd` and `conv1x1`, because the projector is learned but cannot scale.
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

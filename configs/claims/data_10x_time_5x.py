"""KDEP with a tenth of the images and a fifth of the time, compared with supervised on all images.

The time of KDEP includes the teacher cache.
"""

claim = dict(
    name="data_10x_time_5x",
    title="KDEP is within 1 point with 10 x less data and 5 x less time",
    statement="kdep at 10 % of the data is not more than 1 point below supervised at 100 %, at no "
    "more than a fifth of its pre-training time, teacher cache included.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180, abstract",
    kind="difference",
    a=dict(method="kdep", share=0.1),  # share: data fraction
    b=dict(method="supervised", share=1.0),
    margin=-0.01,
    max_cost_ratio=0.2,
)

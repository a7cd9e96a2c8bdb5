"""Ten times less data: KDEP on 10 % of the images compared with supervised on all of them."""

claim = dict(
    name="kdep_10pct_vs_supervised",
    title="KDEP on 10 % of the images is within 1 point of supervised on all",
    statement="kdep at 10 % of the data is not more than 1 point below supervised at 100 %.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180, abstract",
    kind="difference",
    a=dict(method="kdep", share=0.1),  # share: data fraction
    b=dict(method="supervised", share=1.0),
    margin=-0.01,
)

"""KDEP, which uses no labels, compared with supervised pre-training on the same views."""

claim = dict(
    name="kdep_beats_supervised",
    title="KDEP beats supervised pre-training on the same images",
    statement="kdep scores above supervised at equal images and epochs.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="difference",
    a=dict(method="kdep", share=1.0),  # share: data fraction
    b=dict(method="supervised", share=1.0),
)

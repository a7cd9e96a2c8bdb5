"""SVD with power temperature scaling (PTS) compared with SVD alone."""

claim = dict(
    name="pts_helps",
    title="PTS helps",
    statement="kdep (SVD + PTS) scores above the same with the transform left out.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="difference",
    a=dict(method="kdep", share=1.0),
    # Alternative names of the method. `share` is the data fraction.
    b=dict(method=("svd", "kdep_svd", "kdep_no_pts"), share=1.0),
)

"""A compact teacher, with most variance in few directions, results in a worse student.

Tested by the rank correlation over teachers. With fewer than eight teachers the claim is undecided.
"""

claim = dict(
    name="compact_teacher_is_worse",
    title="A more compact teacher is a worse KDEP teacher",
    statement="Over teachers, the variance kept by the SVD and the student's mean score correlate "
    "below zero (Spearman).",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="rank_correlation",
    a=dict(method="kdep"),
    by="explained_variance_ratio",
    at_most=0.0,
)

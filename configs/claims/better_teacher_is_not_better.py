"""A more accurate teacher is not a better KDEP teacher.

Tested by the rank correlation, over teachers, of their reported ImageNet accuracy and the student's
score. With fewer than eight teachers the claim is undecided. The claim compact_teacher_is_worse is
the same test for compactness instead of accuracy.
"""

claim = dict(
    name="better_teacher_is_not_better",
    title="A better teacher is not a better KDEP teacher",
    statement="Over teachers, reported top-1 accuracy and the student's mean score correlate "
    "weakly or negatively (Spearman, at most 0.5).",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="rank_correlation",
    a=dict(method="kdep"),
    by="top1",
    at_most=0.5,
)

"""KDEP pre-training against no pre-training.

With an ImageNet teacher this must hold; otherwise the pre-training code, the recipe or the budget
is wrong.
"""

claim = dict(
    name="kdep_beats_scratch",
    title="KDEP beats no pre-training",
    statement="kdep scores above scratch on the mean of the tasks, by family and over all.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="difference",
    a=dict(method="kdep", share=1.0),
    b=dict(method="scratch", share=1.0),
)

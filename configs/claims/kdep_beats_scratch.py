"""KDEP pre-training compared with no pre-training.

This must hold with an ImageNet teacher. If it does not, the pre-training code, the hyperparameters
or the budget are wrong.
"""

claim = dict(
    name="kdep_beats_scratch",
    title="KDEP beats no pre-training",
    statement="kdep scores above scratch on the mean of the tasks, by family and over all.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="difference",
    a=dict(method="kdep", share=1.0),  # share: data fraction
    b=dict(method="scratch", share=1.0),
)

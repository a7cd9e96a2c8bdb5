"""A learned two-layer projector from the student to the teacher's width.

Source       row B-2, the non-linear form of `conv1x1`; the hidden width is ours, no paper's.
Differs      from `conv1x1` by a hidden layer of 1024 with a ReLU.
Expectation  a lower training loss than `conv1x1`, and more of it explained by what is dropped.
"""

from kdep_bench.objectives.projected_regression import ProjectedRegression

method = dict(
    name="mlp",
    family="feature",
    labels_used=False,
    source="baseline: non-linear projector, hidden width of our choice",
    objective=dict(type=ProjectedRegression, hidden=1024, weight="auto"),
    align=None,
    transform=None,
)

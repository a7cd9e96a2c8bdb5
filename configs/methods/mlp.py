"""A learned two-layer projector from the student to the teacher's width.

Source       the non-linear form of `conv1x1`; the hidden width was chosen in this project.
Differs      from `conv1x1` in a hidden layer with 1024 channels and a ReLU.
Expectation  a lower training loss than `conv1x1`. But a larger part of the fit is due to the
             projector, which is dropped at export.
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

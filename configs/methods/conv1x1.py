"""A learned 1x1 convolution from the student to the teacher's width: KDEP's parametric baseline.

Source       KDEP's parametric baseline ("1x1 conv" of Figure 1; He et al., CVPR 2022), in the form
             of FitNets. On pooled features it is a linear layer, as convolution and pooling
             commute. Trained with the student, dropped at export.
Differs      from `svd` in the alignment: here a learned layer projects the student's feature to the
             teacher's width, there a fixed one reduces the teacher's feature.
Expectation  worse than KDEP, as reported in Figure 1: mean top-1 on four data sets, with 10 % of
             the data and about 8 h of training, 74.02 (KDEP: 77.07). The projector, which is
             dropped, may fit the teacher in place of the student.
"""

from kdep_bench.objectives.projected_regression import ProjectedRegression

method = dict(
    name="conv1x1",
    family="feature",
    labels_used=False,
    source="baseline of He et al., CVPR 2022; Romero et al., ICLR 2015 (FitNets)",
    objective=dict(type=ProjectedRegression, weight="auto"),
    align=None,
    transform=None,
)

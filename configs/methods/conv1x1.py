"""A learned 1x1 convolution from the student to the teacher's width: KDEP's parametric baseline.

Source       KDEP's parametric baseline ("1x1 conv" of Figure 1; He et al., CVPR 2022), in the form
             of FitNets. On pooled features it is a linear layer, as convolution and pooling
             commute. Trained with the student, dropped at export.
Differs      from `svd` in what is adapted: here the student's feature is projected up by a learned
             layer, there the teacher's feature is reduced by a fixed one.
Expectation  *reported* in Figure 1 (mean top-1 of four data sets, 10 % data, about 8 h): 74.02
             against KDEP's 77.07; the projector can learn what the student should.
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

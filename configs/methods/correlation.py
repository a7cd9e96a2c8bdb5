"""Correlation congruence: a Gaussian kernel between the images of a batch, label-free.

Source       Peng et al., ICCV 2019; the kernel as in AberHu/Knowledge-Distillation-Zoo. The weight
             was chosen in this project, so that the initial loss is about that of other methods.
Differs      from `similarity` in using the kernel (Taylor series of order 2) instead of the Gram
             matrix.
Cost         O(B^2 D) per batch.
"""

from kdep_bench.objectives.correlation_congruence import CorrelationCongruence

method = dict(
    name="correlation",
    family="relation",
    labels_used=False,
    needs=["pooled"],
    source="Peng et al., ICCV 2019; AberHu/Knowledge-Distillation-Zoo kd_losses/cc.py",
    objective=dict(type=CorrelationCongruence, gamma=0.4, order=2, weight=1000.0),
    align=None,
    transform=None,
)

"""Continuation-KD with labels: cross-entropy, whose weight grows, and the hinge loss.

Source       arXiv 2212.05998, eqs 3-5: psi, the weight of the cross-entropy, increases linearly to
             1 in the first 150 of 200 epochs, here in the first 12 of 16; phi, the factor of the
             teacher's logits, increases once per epoch, as in `continuation`.
Differs      from `continuation` in the cross-entropy, which gradually replaces the teacher's term.
             The labels have other classes than the teacher, so each term has its own linear head.
"""

from kdep_bench.objectives.continuation import Continuation
from kdep_bench.objectives.cross_entropy import CrossEntropy
from kdep_bench.objectives.weighted_sum import WeightedSum
from kdep_bench.schedules.annealing import Annealing
from kdep_bench.schedules.ramp import Ramp

method = dict(
    name="continuation_labels",
    family="logit",
    labels_used=True,
    needs=["labels", "logits"],
    source="Jafari et al., arXiv 2212.05998, eqs 3-5, algorithm 1",
    objective=dict(
        type=WeightedSum,
        parts=dict(
            labels=dict(
                objective=dict(type=CrossEntropy), weight=dict(type=Ramp, start=0, end=1, over=0.75)
            ),
            teacher=dict(
                objective=dict(
                    type=Continuation, margin=0.05, weight=20.0, phi=dict(type=Annealing, t_max=16)
                ),
                weight=dict(type=Ramp, start=1, end=0, over=0.75),
            ),
        ),
    ),
    align=None,
    transform=None,
)

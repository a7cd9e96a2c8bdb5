"""Continuation-KD, label-free (psi = 0): a hinge on logits whose teacher is faded in.

Source       arXiv 2212.05998, eqs 3-5; the margin is this project's choice. The fading takes one
             step an epoch of the pocket's 16 (t_max=16; 20 steps in 200 epochs as published).
Differs      from `logit_kd` in squared distance of logits with a margin, and in the fading.
"""

from kdep_bench.objectives.continuation import Continuation
from kdep_bench.schedules.annealing import Annealing

method = dict(
    name="continuation",
    family="logit",
    labels_used=False,
    needs=["logits"],
    source="Jafari et al., arXiv 2212.05998, eqs 3-5, algorithm 1",
    objective=dict(type=Continuation, margin=0.05, weight=20.0, phi=dict(type=Annealing, t_max=16)),
    align=None,
    transform=None,
)

"""Continuation-KD, label-free (psi = 0): a hinge loss on logits with a gradually faded-in teacher.

Source       arXiv 2212.05998, eqs 3-5; the margin is this project's choice. The fade-in takes one
             step per epoch of the pocket suites' 16 (t_max=16; 20 steps in 200 epochs as
             published).
Differs      from `logit_kd` in using a squared logit distance with a margin, and in the fade-in.
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

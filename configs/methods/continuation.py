"""Continuation-KD, label-free: a hinge loss; teacher logits are multiplied by a factor rising to 1.

Source       arXiv 2212.05998, eqs 3-5, without its cross-entropy; the margin was chosen in this
             project. The factor phi of the teacher's logits increases once in each of the pocket
             suites' 16 epochs (t_max=16); in the paper, 20 times in 200 epochs.
Differs      from `logit_kd` in the loss, a squared distance of logits with a margin, and in phi.
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

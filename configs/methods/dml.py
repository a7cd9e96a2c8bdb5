"""Deep mutual learning: labels, and mutual distillation of two students of one architecture.

Source       Zhang et al., CVPR 2018; AberHu/Knowledge-Distillation-Zoo.
Differs      from `supervised` in the peer network and the two KL terms; the first student is
             exported.
Cost         twice the student's forward and backward pass.
"""

from kdep_bench.objectives.mutual import Mutual

method = dict(
    name="dml",
    family="online",
    labels_used=True,
    needs=["labels"],
    source="Zhang et al., CVPR 2018; AberHu/Knowledge-Distillation-Zoo kd_losses/dml.py",
    objective=dict(type=Mutual, weight=1.0),
    align=None,
    transform=None,
)

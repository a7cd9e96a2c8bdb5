"""BD-KD: teacher and student trained together, both directions of KL balanced per image.

Source       re-implemented from the abstract of arXiv 2212.12965 (2022, 2024). The weights are this
             project's: 2 for KL(teacher || student) where the student is surer than the teacher and
             for KL(student || teacher) elsewhere, 1 for the other direction.
Differs      from `dml` in the larger second network, which is a teacher, and in the second
             direction of the student's KL; the student is exported.
Labels       of the data, for both networks. No trained teacher is read.
Cost         per step one forward and backward pass of the larger network. Another `peer` must have
             the student's input size; objective=dict(peer=None) makes it the student's own network.
"""

from mmengine.config import read_base

from kdep_bench.objectives.bd_kd import BalancedDivergences

with read_base():
    from ..students.resnet18_w48 import student as peer

method = dict(
    name="bd_kd",
    family="online",
    labels_used=True,
    reconstruction=True,
    needs=["labels"],
    source="re-implementation from the abstract of arXiv 2212.12965 (BD-KD)",
    objective=dict(type=BalancedDivergences, peer=peer, delta=2.0),
    align=None,
    transform=None,
)

"""BD-KD: teacher and student are trained together; the student's loss has both KL divergences.

Source       re-implemented from the abstract of arXiv 2212.12965 (2022, 2024). The weights were
             chosen in this project. Where the student has the lower entropy, KL(teacher || student)
             has the weight 2 and KL(student || teacher) the weight 1; elsewhere the weights are
             exchanged.
Differs      from `dml` in the larger second network, the teacher, and in the second KL term of the
             student. Only the student is exported.
Labels       of the data, for both networks. There is no pre-trained teacher.
Cost         per step one forward and backward pass of the teacher. `peer` is the config of the
             teacher's network. Another `peer` must have the student's input size;
             objective=dict(peer=None) uses the student's architecture.
"""

from mmengine.config import read_base

from kdep_bench.objectives.bd_kd import BalancedDivergences

with read_base():
    from ..students.resnet18_w48 import student as peer

method = dict(
    name="bd_kd",
    family="online",
    labels_used=True,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["labels"],
    source="re-implementation from the abstract of arXiv 2212.12965 (BD-KD)",
    objective=dict(type=BalancedDivergences, peer=peer, delta=2.0),
    align=None,
    transform=None,
)

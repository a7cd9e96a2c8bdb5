"""MFEF: a student and a peer learn from a fusion of their feature maps, with labels.

Source       re-implementation from the abstract of arXiv 2206.08224 (ICANN 2022): multi-scale
             extraction, attention to channels and positions, fusion. Details and weights were
             chosen in this project; `kdep_bench/objectives/mfef.py` lists them.
Differs      from `dml` in the teacher of both networks, which is the classifier of the fused map
             instead of the other network, and in the regression of the fused map.
Labels       of the data, for both networks and the fusion. There is no pre-trained teacher.
Cost         per step one forward and backward pass of each peer and of the fusion.
             objective=dict(peers=3) trains four networks.
"""

from kdep_bench.objectives.mfef import FusedMaps

method = dict(
    name="mfef",
    family="online",
    labels_used=True,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["labels"],
    source="re-implementation from the abstract of arXiv 2206.08224 (MFEF)",
    objective=dict(type=FusedMaps, student_level="s32", peers=1),
    align=None,
    transform=None,
)

"""Semi-online KD: the student learns from a bridge, the teacher's last layers trained in the run.

Source       Liu et al., BMVC 2021; swlzq/Semi-Online-KD trainer/sokd.py. Its two cross-entropies
             are left out (label-free); SemiOnlineWithLabels has them.
Differs      from `logit_kd` in what the student learns from: layers with new weights on the
             teacher's stored map at stride 16, which learn from teacher and student. From `dml` in
             the peer, which is no second student.
Cost         a forward and backward pass of these layers; a cache of the map.
"""

from kdep_bench.objectives.sokd import SemiOnline

method = dict(
    name="sokd",
    family="online",
    labels_used=False,
    needs=["logits", "maps", "tail"],
    source="Liu et al., BMVC 2021; swlzq/Semi-Online-KD trainer/sokd.py",
    objective=dict(type=SemiOnline, levels=dict(s16="s16"), tau=4.0),
    align=None,
    transform=None,
)

"""Semi-online KD: the student learns from a bridge, a trained copy of the teacher's last layers.

Source       Liu et al., BMVC 2021; swlzq/Semi-Online-KD trainer/sokd.py. Its two cross-entropies
             are omitted (label-free); SemiOnlineWithLabels has them.
Differs      from `logit_kd` in the student's target: the logits of the bridge. The bridge starts
             from random weights, reads the teacher's cached map at stride 16, and is trained on the
             logits of teacher and student. In `dml` the second trained network is a student.
Cost         a forward and backward pass of the bridge; a cache of the map.
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

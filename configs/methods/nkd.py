"""Normalised KD, label-free: separate losses for the teacher's top-1 class and the other classes.

Source       arXiv 2208.10139; yzd-v/cls_KD nkd.py with gamma 1.5 and tau 1.
Differs      from `logit_kd` in the loss of the other classes, which does not depend on the
             teacher's confidence in its top-1 class, and in an additional cross-entropy with the
             teacher's top-1 class as the label.
"""

from kdep_bench.objectives.nkd import NKD

method = dict(
    name="nkd",
    family="logit",
    labels_used=False,
    needs=["logits"],
    source="Yang et al., arXiv 2208.10139; yzd-v/cls_KD mmcls/models/dis_losses/nkd.py",
    objective=dict(type=NKD, gamma=1.5, tau=1.0, hard=1.0),
    align=None,
    transform=None,
)

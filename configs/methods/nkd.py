"""Normalised KD, label-free: the teacher's top-1 class apart from all others, each side by itself.

Source       arXiv 2208.10139; yzd-v/cls_KD nkd.py with gamma 1.5 and tau 1.
Differs      from `logit_kd` in freeing the non-target classes from the teacher's confidence, and
             in a hard term on the teacher's top-1, which stands in for the label.
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

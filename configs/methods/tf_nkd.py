"""Teacher-free NKD: supervised, with the student's confidence in the label as a soft target.

Source       arXiv 2208.10139 section 3.3; the older distiller of yzd-v/cls_KD.
Differs      from `supervised` only in the soft target; there is no teacher.
"""

from kdep_bench.objectives.nkd import TeacherFreeNKD

method = dict(
    name="tf_nkd",
    family="logit",
    labels_used=True,
    needs=["labels"],
    source="Yang et al., arXiv 2208.10139; yzd-v/cls_KD, older distiller",
    objective=dict(type=TeacherFreeNKD, value=1.0),
    align=None,
    transform=None,
)

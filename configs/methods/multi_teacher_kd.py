"""Logit KD from two teachers with equal weights: the baseline of the multi-teacher methods.

Source       AVERAGE_LOSS of the CA-MKD repository, without its cross-entropy (label-free).
Differs      from `logit_kd` in the second teacher: the mean of two KL terms on one student head.
Cost         one cache per teacher.
Needs        teachers with the same classes.
"""

from kdep_bench.objectives.multi_teacher import MultiTeacherKD

method = dict(
    name="multi_teacher_kd",
    family="multi-teacher",
    labels_used=False,
    needs=["logits"],
    source="Rorozhl/CA-MKD helper/loops.py, AVERAGE_LOSS",
    objective=dict(type=MultiTeacherKD, tau=4.0),
    align=None,
    transform=None,
    # "suite": the teacher that the suite names.
    teachers=dict(first="suite", second="efficientnet_lite2"),
)

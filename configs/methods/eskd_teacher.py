"""Logit KD from a teacher that the suite trains itself: a wider ResNet-18, with labels, 8 epochs.

Source       Cho and Hariharan, ICCV 2019: a teacher trained on a shorter schedule (35 or 50 epochs
             of 200 there) is a better teacher than a completely trained one.
Differs      from `takd` in the teacher, which is trained on the pool's labels for half of the
             pocket suites' 16 epochs. Only the teacher reads labels; in the tables 'labels used'
             is 'by its teacher'.
Cost         includes the teacher's pre-training.
"""

from kdep_bench.objectives.logit_kd import LogitKD

method = dict(
    name="eskd_teacher",
    family="logit",
    labels_used=False,
    label_policy="labels",
    needs=["logits"],
    source="Cho and Hariharan, ICCV 2019, section 4.3",
    objective=dict(type=LogitKD, tau=4.0),
    align=None,
    transform=None,
    teacher=dict(student="resnet18_w48", method="supervised", epochs=8.0),
)

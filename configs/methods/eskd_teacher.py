"""An early-stopped teacher: a larger student, supervised for 8 epochs, teaches by logits.

Source       Cho and Hariharan, ICCV 2019: a teacher trained on a shorter schedule (35 or 50 epochs
             of 200 there) teaches better than one trained to its end.
Differs      from `takd` in the teacher: the pool's labels, half of the pocket's 16 epochs. No label
             is read by this arm itself, but its teacher read them all: it counts as an arm with
             labels.
Cost         the teacher's pre-training, counted in this arm's.
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

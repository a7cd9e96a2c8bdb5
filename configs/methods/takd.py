"""Teacher-assistant KD: logit KD to a middle-sized network, which then teaches the student.

Source       Mirzadeh et al., AAAI 2020. KL as batchmean; the public code's `nn.KLDivLoss()` is that
             over the number of classes, so its weights do not carry over. Label-free: alpha = 1.
Differs      from `logit_kd` in who says the logits.
Cost         a second pre-training, of the assistant, counted in this arm's.
"""

from kdep_bench.objectives.logit_kd import LogitKD

method = dict(
    name="takd",
    family="logit",
    labels_used=False,
    needs=["logits"],
    source="Mirzadeh et al., AAAI 2020; imirzadeh/Teacher-Assistant-Knowledge-Distillation",
    objective=dict(type=LogitKD, tau=4.0),
    align=None,
    transform=None,
    teacher=dict(student="resnet18_w48", method="logit_kd"),
)

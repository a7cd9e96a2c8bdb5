"""Teacher-assistant KD: logit KD to a middle-sized network, which is then the student's teacher.

Source       Mirzadeh et al., AAAI 2020, without labels (the distillation term has weight 1,
             lambda = 1 in the public code). The KL divergence is averaged over the batch only; the
             public code's `nn.KLDivLoss()` also divides by the number of classes.
Differs      from `logit_kd` in the teacher, which is the assistant.
Cost         includes a second pre-training, of the assistant.
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

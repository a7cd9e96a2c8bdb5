"""Logit KD on nine tenths of the images: the assistants of `weighted_assistants`.

Source       as `logit_kd`: Hinton, Vinyals, Dean 2015, without labels.
Differs      from `logit_kd` in the held-out tenth of the images, which has loss 0. The weights of
             the assistants are found on these images. The number of steps is the same.
"""

from kdep_bench.objectives.held_out import HeldOutLogitKD

method = dict(
    name="held_out_kd",
    family="logit",
    labels_used=False,
    needs=["logits"],
    source="Hinton, Vinyals, Dean 2015, arXiv 1503.02531",
    objective=dict(type=HeldOutLogitKD, held_out=0.1, tau=4.0),
    align=None,
    transform=None,
)

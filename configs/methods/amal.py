"""AMAL: labels and teacher weighted per image, by weights learned on held-out images.

Source       Iyer et al., AAAI 2023; durgas16/AMAL. Weights, temperature and rate are its CIFAR-100
             values; when they are updated is written in `kdep_bench/objectives/amal.py`.
Differs      from logit distillation with labels in the weights, which there are two numbers. The
             teacher is a larger student, supervised on the same labels, since one head learns both.
             A tenth of the images of the share is held out for the weights and not trained on.
Cost         two numbers per image of the pool; in every tenth step five products of the size of the
             head. Includes the teacher's pre-training.
"""

from kdep_bench.objectives.amal import Amal

method = dict(
    name="amal",
    family="logit",
    labels_used=True,
    needs=["logits", "labels", "classes"],
    source="AMAL, AAAI 2023; durgas16/AMAL KD/LearnMultiLambdaMeta.py",
    objective=dict(type=Amal),
    align=None,
    transform=None,
    teacher=dict(student="resnet18_w48", method="supervised"),
)

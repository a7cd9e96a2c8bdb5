"""AMAL: loss weights per image for label and teacher, meta-learned on held-out images.

Source       Iyer et al., AAAI 2023; durgas16/AMAL. Initial weights, temperature and learning rate
             are its CIFAR-100 values; `kdep_bench/objectives/amal.py` lists the differences.
Differs      from logit distillation with labels, which has the same two weights for all images. The
             teacher is a larger student that is pre-trained with the same labels: the student has
             one head for labels and teacher, so both must have the same classes. A tenth of the
             images is held out to train the weights.
Cost         two numbers per image of the pool; in every tenth step five matrix products of the size
             of the head. Includes the teacher's pre-training.
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

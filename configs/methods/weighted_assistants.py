"""Weighted ensemble of assistants: logit KD from two students of different sizes.

Source       re-implemented from the abstract of Ganta, Das Gupta, Sheng (arXiv 2206.12005): the
             weights of the assistants are found by differential evolution. Chosen in this project:
             the weights minimise, on a held-out tenth of the images, the cross-entropy between
             the predictions of the large teacher and those of the ensemble.
Differs      from `takd` in the second, smaller assistant and in the weights, which are found once,
             before training; from `multi_teacher_kd` in the assistants and the weights. The larger
             assistant is that of `takd`, but is not trained on the held-out images.
Labels       none. WeightedAssistantsWithLabels of the same module finds the weights with the labels
             of the held-out images and adds the paper's cross-entropy of the student with the
             labels, which must be of the classes that the assistants predict. It has no
             `reference`.
Outcome      the note of each record states the weights and their entropy. If one assistant is the
             best for all images, it gets all the weight; a minimum weight (the argument
             `floor`) prevents that.
Cost         includes the pre-training of both assistants, and one cache per teacher.
"""

from kdep_bench.objectives.weighted_assistants import WeightedAssistants

method = dict(
    name="weighted_assistants",
    family="multi-teacher",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["logits"],
    source="re-implementation from the abstract of arXiv 2206.12005",
    objective=dict(type=WeightedAssistants, held_out=0.1, reference="large", tau=4.0),
    align=None,
    transform=None,
    teachers=dict(
        medium=dict(student="resnet18_w48", method="held_out_kd"),
        small=dict(student="resnet18_w40", method="held_out_kd"),
        large="suite",  # the teacher that the suite names
    ),
)

"""Supervised pre-training on nine tenths of the images: the candidates of `teacher_quality`.

Source       as `supervised`.
Differs      from `supervised` in the held-out tenth of the images, which has loss 0. The teachers
             are compared on these images. The number of steps is the same.
"""

from kdep_bench.objectives.held_out import HeldOutCrossEntropy

method = dict(
    name="held_out_supervised",
    family="supervised",
    labels_used=True,
    needs=["labels"],
    source="baseline: cross-entropy on labels",
    objective=dict(type=HeldOutCrossEntropy, held_out=0.1),
    align=None,
    transform=None,
)

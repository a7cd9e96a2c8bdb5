"""Logit KD with the similarities of classes destroyed: a control for `logit_kd`.

Source       re-implemented from the abstract of Vats and Crandall (arXiv 2112.10047), which
             separates distillation from regularisation. The permutation was chosen in this project.
Differs      from `logit_kd` in the teacher's probabilities: those of all classes but the top class
             are permuted, differently for each image and view. Top class and entropy are unchanged.
Outcome      a student as good as that of `logit_kd` shows that the gain of `logit_kd` is
             regularisation; the claim distillation_is_not_regularisation tests the difference.
"""

from kdep_bench.objectives.permuted_kd import PermutedKD

method = dict(
    name="logit_kd_permuted",
    family="logit",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["logits"],
    source="re-implementation from the abstract of arXiv 2112.10047",
    objective=dict(type=PermutedKD, tau=4.0),
    align=None,
    transform=None,
)

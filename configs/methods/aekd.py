"""AEKD: logit KD from two teachers, with weights that minimise the norm of the joint gradient.

Source       Du et al., NeurIPS 2020, in the form of the CA-MKD repository: gradients with respect
             to the student's logits, largest weight (tolerance) 0.6, without cross-entropy.
Differs      from `multi_teacher_kd` in the weights, which are computed for every batch. The
             repository's solver (a one-class SVM) returns its starting point when gradients are
             small; the solver here does not.
"""

from mmengine.config import read_base

from kdep_bench.objectives.aekd import AgreementKD

with read_base():
    from .multi_teacher_kd import method

method.update(
    name="aekd",
    source="Du et al., NeurIPS 2020; Rorozhl/CA-MKD helper/loops.py, AEKD",
    objective=dict(type=AgreementKD, tau=4.0, tolerance=0.6),
)

"""AEKD: logit KD from two teachers, weighted so that the common gradient opposes none of them.

Source       Du et al., NeurIPS 2020, in the form of the CA-MKD repository: least-norm combination
             of the gradients at the student's logits, tolerance 0.6. Its cross-entropy is left out.
Differs      from `multi_teacher_kd` in the weights, which are those of a batch. The repository's
             one-class SVM stops at its starting point where gradients are small; here the problem
             is solved.
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

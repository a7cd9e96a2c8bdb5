"""EBKD: logit KD from two teachers, weighted per image by the entropy of their outputs; label-free.

Source       Kwon et al., ICASSP 2020, in the form of the CA-MKD repository: weights
             (1 - H_k / sum of H) / K for K teachers with entropies H_k, without cross-entropy.
Differs      from `multi_teacher_kd` in the weights. It is the label-free counterpart of `ca_mkd`.
"""

from mmengine.config import read_base

from kdep_bench.objectives.entropy_weights import EntropyWeights

with read_base():
    from .multi_teacher_kd import method

method.update(
    name="ebkd",
    source="Kwon et al., ICASSP 2020; Rorozhl/CA-MKD helper/loops.py, EBKD",
)
method["objective"].update(weighting=dict(type=EntropyWeights))

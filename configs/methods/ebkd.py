"""EBKD: logit KD from two teachers, per image weighted by how certain each one is, label-free.

Source       Kwon et al., ICASSP 2020, in the form of the CA-MKD repository: weights
             (1 - H_k / sum of H) / K, which sum to (K - 1) / K. Its cross-entropy is left out.
Differs      from `multi_teacher_kd` in the weights. It is also the label-free form of `ca_mkd`.
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

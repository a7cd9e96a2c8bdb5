"""Self-distillation of KDEP: a new student regresses the feature of an equal, KDEP-trained one.

Source       He et al., CVPR 2022, with the idea of arXiv 2206.08491 (Pham et al. 2022); ours.
Differs      from `kdep` in the teacher, a network of the student's architecture that was trained by
             `kdep`. Both features have the same width, so there is no SVD. There is no power
             temperature scaling either, because it is already in the first network's feature.
Labels       none, in both networks.
Cost         twice the training of `kdep`, whose stage it shares.
"""

from mmengine.config import read_base

with read_base():
    from .identity import method

method.update(
    name="kdep_self_distillation",
    reconstruction=True,  # shown as "(re-implementation)"
    source="own form of arXiv 2206.08491 (Pham et al.) with He et al., CVPR 2022",
    teacher=dict(student="same", method="kdep"),
)

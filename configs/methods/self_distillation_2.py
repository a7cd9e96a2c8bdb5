"""Second generation of self-distillation: the teacher is the network of `self_distillation`.

Source       re-implementation from the abstract of arXiv 2206.08491 (Pham et al. 2022); generations
             as in Furlanello et al., ICML 2018 (born-again networks).
Differs      from `self_distillation` in the teacher only.
Cost         three times the training of `supervised`; the stages of the first two are shared with
             the methods of their names.
"""

from mmengine.config import read_base

with read_base():
    from .self_distillation import method

method.update(
    name="self_distillation_2",
    teacher=dict(student="same", method="self_distillation"),
)

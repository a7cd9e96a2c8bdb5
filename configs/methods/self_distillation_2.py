"""Second generation of self-distillation: the teacher is the network of `self_distillation`.

Source       re-implementation from the abstract of arXiv 2206.08491 (Pham et al. 2022); generations
             as in Furlanello et al., ICML 2018 (born-again networks).
Differs      from `self_distillation` in the teacher only.
Cost         three trainings: `supervised`, `self_distillation`, then this one. A suite that also
             lists the first two methods does not train them again.
"""

from mmengine.config import read_base

with read_base():
    from .self_distillation import method

method.update(
    name="self_distillation_2",
    teacher=dict(student="same", method="self_distillation"),
)

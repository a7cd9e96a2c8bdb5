"""KDEP through an assistant: the middle-sized student of a first KDEP teaches a second.

Source       TAKD's chain (Mirzadeh et al., AAAI 2020) with KDEP as the objective of both hops.
Differs      from `kdep` in whose feature is regressed: the assistant's, before its last ReLU. That
             feature imitates a power-scaled target, and the second hop scales it once more.
Cost         a second pre-training, of the assistant, counted in this arm's.
"""

from mmengine.config import read_base

with read_base():
    from .kdep import method

method.update(
    name="kdep_assistant",
    source="a chain (Mirzadeh et al., AAAI 2020) of He et al., CVPR 2022",
    teacher=dict(student="resnet18_w48", method="kdep"),
)

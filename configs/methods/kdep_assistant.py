"""KDEP through a teacher assistant: a middle-sized network, trained with KDEP, is the teacher.

Source       TAKD (Mirzadeh et al., AAAI 2020), with KDEP as the objective of assistant and student.
Differs      from `kdep` in the regressed feature: the assistant's output before its last ReLU.
             Power temperature scaling is therefore applied twice.
Cost         includes a second pre-training, of the assistant.
"""

from mmengine.config import read_base

with read_base():
    from .kdep import method

method.update(
    name="kdep_assistant",
    source="teacher assistant (Mirzadeh et al., AAAI 2020) with He et al., CVPR 2022",
    teacher=dict(student="resnet18_w48", method="kdep"),
)

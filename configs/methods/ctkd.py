"""Curriculum temperature: logit KD with an adversarially trained temperature, label-free.

Source       CTKD, AAAI 2023; zhengli97/CTKD, global temperature, 1 to 21, initially 15.6.
Differs      from `logit_kd` only in the temperature, a learned parameter with the student's
             learning rate. The published curriculum takes ten epochs of 120 or 240; in a run of 16
             epochs it covers most of the training. A budget below ten epochs raises an error.
"""

from kdep_bench.objectives.ctkd import CTKD
from kdep_bench.schedules.cosine import Cosine

method = dict(
    name="ctkd",
    family="logit",
    labels_used=False,
    needs=["logits"],
    source="Li et al., AAAI 2023; zhengli97/CTKD models/temp_global.py, helper/loops.py",
    objective=dict(
        type=CTKD,
        start=1.0,
        range=20.0,
        theta=1.0,
        curriculum=dict(type=Cosine, start=0.0, end=-1.0, span=10.0),
    ),
    align=None,
    transform=None,
)

"""TransKD-EA: TransKD with new patch embeddings of the teacher's width next to the student's.

Source       Liu et al., arXiv 2202.13393; RuipingL/TransKD `train/CSF_EA.py`.
Differs      from `transkd` in the embedding assistants: on every level, a new patch embedding reads
             the student's map of the next finer level, and is added to the projected embedding of
             the student with learned weights. They are removed after training. Loss weights are
             the same. `dict(base="transkd_ea", transfer=dict(mixer=True))` has the GL-Mixer too.
Cost         as `transkd`, and one convolution per level.
Outcome      not measured yet.
"""

from mmengine.config import read_base

with read_base():
    from .transkd import method

method.update(
    name="transkd_ea",
    source="arXiv 2202.13393; RuipingL/TransKD train/CSF_EA.py",
)
method["transfer"].update(mixer=False, assistants=True)

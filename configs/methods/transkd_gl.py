"""TransKD-GL: TransKD whose deepest patch embedding passes attention and gated convolutions.

Source       Liu et al., arXiv 2202.13393; RuipingL/TransKD `train/CSF_GLMixer.py`.
Differs      from `transkd` in the GL-Mixer on the student's patch embedding of stride 32, which is
             trained with the student and removed after training. Loss weights are the same.
Cost         as `transkd`, and the attention between all positions of the deepest level.
Outcome      not measured yet.
"""

from mmengine.config import read_base

with read_base():
    from .transkd import method

method.update(
    name="transkd_gl",
    source="arXiv 2202.13393; RuipingL/TransKD train/CSF_GLMixer.py",
)
method["transfer"].update(mixer=True, assistants=False)

"""EfficientNet-Lite0 read in the middle: the average of the 112-channel map at stride 16.

The weights and the input size are those of `efficientnet_lite0`. A student with more than 112
channels needs a policy in its method, such as align=dict(policy="zero_pad"). No logits.
"""

from mmengine.config import read_base

with read_base():
    from .efficientnet_lite0 import teacher

teacher.update(name="efficientnet_lite0_s16", tap="s16", has_logits=False)
# The accuracy that its authors report is that of the complete network.
teacher["card"].update(width=112, logits_from_pooled=False, top1=None, top1_source="")

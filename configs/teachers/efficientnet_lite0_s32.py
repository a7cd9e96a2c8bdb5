"""EfficientNet-Lite0 read before its head: the average of the 320-channel map at stride 32.

The weights and the input size are those of `efficientnet_lite0`. Its 1280-channel feature is a
function of this one, so both contain the same information before the head. No logits.
"""

from mmengine.config import read_base

with read_base():
    from .efficientnet_lite0 import teacher

teacher.update(name="efficientnet_lite0_s32", tap="s32", has_logits=False)
# The accuracy that its authors report is that of the complete network.
teacher["card"].update(width=320, logits_from_pooled=False, top1=None, top1_source="")

"""Faster R-CNN FPN at its published size: mmdet 3.3's standard faster-rcnn_r50_fpn model.

The task adds the backbone, the input channels of the FPN, the number of classes and the
normalisation.
"""

from mmengine.config import read_base

with read_base():
    from .faster_rcnn import model

model.update(neck=dict(type="FPN", out_channels=256, num_outs=5))
model["rpn_head"].update(in_channels=256, feat_channels=256)
model["rpn_head"]["anchor_generator"].update(scales=[8], strides=[4, 8, 16, 32, 64])
extractor = model["roi_head"]["bbox_roi_extractor"]
extractor.update(out_channels=256, featmap_strides=[4, 8, 16, 32])
extractor["roi_layer"].update(output_size=7)
model["roi_head"]["bbox_head"].update(
    type="Shared2FCBBoxHead", in_channels=256, fc_out_channels=1024
)
model["train_cfg"]["rpn_proposal"].update(nms_pre=2000, max_per_img=1000)
model["test_cfg"]["rpn"].update(nms_pre=1000, max_per_img=1000)

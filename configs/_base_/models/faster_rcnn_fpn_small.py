"""Faster R-CNN with a narrow FPN and a reduced head, for scenes of about 160x120 on a CPU.

Differences from the standard model (faster_rcnn_fpn.py): FPN with 64 channels at strides 4 to 32,
anchors of 4 times the stride (16 to 128 px), 128 sampled anchors and 64 sampled RoIs in training,
200 proposals, a class-agnostic box head of two layers with 256 units that reads strides 4 to 16,
and at most 50 detections per image. The task adds the backbone and the number of classes.
"""

from mmengine.config import read_base

with read_base():
    from .faster_rcnn import model

model.update(neck=dict(type="FPN", out_channels=64, num_outs=4))
model["rpn_head"].update(in_channels=64, feat_channels=64)
model["rpn_head"]["anchor_generator"].update(scales=[4], strides=[4, 8, 16, 32])
extractor = model["roi_head"]["bbox_roi_extractor"]
extractor.update(out_channels=64, featmap_strides=[4, 8, 16], finest_scale=28)
extractor["roi_layer"].update(output_size=7, sampling_ratio=1)
model["roi_head"]["bbox_head"].update(
    type="Shared2FCBBoxHead", in_channels=64, fc_out_channels=256, reg_class_agnostic=True
)
train, test = model["train_cfg"], model["test_cfg"]
train["rpn"]["sampler"].update(num=128)
train["rpn_proposal"].update(nms_pre=300, max_per_img=200)
train["rcnn"]["sampler"].update(num=64)
test["rpn"].update(nms_pre=300, max_per_img=200)
test["rcnn"].update(max_per_img=50)

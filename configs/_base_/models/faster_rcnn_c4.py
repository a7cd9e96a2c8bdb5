"""Faster R-CNN C4: mmdet 3.3's faster-rcnn_r50-caffe_c4 with the channel counts of ResNet-18.

The RPN reads the output of the backbone's stage 3, at stride 16. The task adds stage 4 of the
backbone as the shared part of the RoI head. It also sets the number of classes, and replaces the
numbers of input channels by those of the student.
"""

from mmengine.config import read_base

with read_base():
    from .faster_rcnn import model

model["rpn_head"].update(in_channels=256, feat_channels=512)
model["rpn_head"]["anchor_generator"].update(scales=[2, 4, 8, 16, 32], strides=[16])
extractor = model["roi_head"]["bbox_roi_extractor"]
extractor.update(out_channels=256, featmap_strides=[16])
extractor["roi_layer"].update(output_size=14)
model["roi_head"]["bbox_head"].update(type="BBoxHead", with_avg_pool=True, in_channels=512)
model["train_cfg"]["rpn_proposal"].update(nms_pre=12000, max_per_img=2000)
model["test_cfg"]["rpn"].update(nms_pre=6000, max_per_img=1000)

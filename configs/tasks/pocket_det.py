"""Detection of 8 classes in pocket scenes (COCO format): Faster R-CNN FPN with a reduced head.

For every method, all stages and BatchNorm are trained. mmdet's usual settings (one frozen stage,
BatchNorm in eval mode) are for ImageNet weights and would put randomly initialised students at a
disadvantage.
Training takes about 120 s on one core for the half-width ResNet-18.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.faster_rcnn_fpn_small import model

task = dict(
    type="kdep_bench.transfer.detection.Detection",
    name="pocket_det",
    family="detection",
    version=1,
    split="test",
    metric="bbox_mAP_50",
    direction="max",
    chance=0.0,
    recipe=dict(
        folder="detect",
        model=model,
        scale=(160, 120),
        iters=600,
        batch=4,
        test_batch=8,
        lr=0.02,
        head_lr_mult=1,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=10.0,
        warmup=50,
        steps=(0.75, 0.92),
        frozen_stages=-1,
        norm_eval=False,
    ),
)

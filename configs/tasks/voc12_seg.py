"""PASCAL VOC 2012, 21 classes: PSPNet on 10,582 training images (trainaug), scored on 1,449.

Recipe of CVMI-Lab/KDEP: PSPNet, crop size 512, batch size 16 over all GPUs, SyncBN, SGD with a
polynomial learning rate schedule of power 0.9, weight decay 1e-4, 10 times the learning rate for
new layers; mIoU at a single scale and full size. ResNet-18 is dilated to stride 8 and has an
auxiliary head with loss weight 0.4. For a student without dilation (MobileNetV2), the head reads
its levels at strides 8, 16 and 32.

Differences from the public code: the length is given in steps (50 epochs of 10,582 images at batch
size 16 are 33,100 steps; 33,000 here); no rotation and no blur; every run has a different seed;
the input normalisation is that of pre-training; the weights of the last step are scored. The range
of that recipe's random resize is unknown; 0.5 to 2.0 is mmseg's default.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.pspnet_full import model

task = dict(
    type="kdep_bench.transfer.full_segmentation.OfficialSegmentation",
    name="voc12_seg",
    family="segmentation",
    version=1,
    split="val",
    metric="mIoU",
    direction="max",
    chance=0.0,
    recipe=dict(
        set="voc",
        model=model,
        scale=(2048, 512),
        resize_ratio=(0.5, 2.0),
        crop=(512, 512),
        dilate=True,
        iters=33000,
        batch=16,
        test_batch=1,
        lr=0.01,
        head_lr_mult=10,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=None,
        poly_power=0.9,
        frozen_stages=-1,
        norm_eval=False,
        workers=4,
    ),
)

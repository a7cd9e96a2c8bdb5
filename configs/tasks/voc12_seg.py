"""PASCAL VOC 2012, 21 classes: PSPNet on 10,582 training images (trainaug), scored on 1,449.

CVMI-Lab/KDEP's recipe: PSPNet, crop 512, batch 16 over all GPUs, SyncBN, SGD with a poly learning
rate of power 0.9, weight decay 1e-4, new layers at 10x the learning rate, mIoU of one pass at full
size. ResNet-18 is dilated to stride 8 with an auxiliary head of weight 0.4; a student without
dilation (MobileNetV2) passes its levels from stride 8 on to the head.

Departures: steps are counted, not epochs (50 epochs of 10,582 images at batch 16 are 33,100; 33,000
here); no rotation and no blur; every run has a different seed; the normalisation is the backbone's
own; the last step is scored. No size range is known: 0.5 to 2.0 is mmseg's.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.pspnet_full import model, norm_cfg

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

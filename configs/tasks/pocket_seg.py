"""Segmentation of 8 classes and the background (Cityscapes layout): PSPNet on three levels.

For every method, the head reads the stages at strides 8, 16 and 32, resized to stride 8 and
concatenated. The KDEP paper dilates the backbone to stride 8 instead. That does not fit here: the
students are pre-trained at 64 px, where the last map is 2x2, so a dilated last stage would have
inputs unlike those of pre-training. In a trial with one seed on another split, a dilated KDEP
student was worse than random weights; set `dilate=True` to repeat the trial.

`chance` is the mIoU of predicting the most frequent class, background, everywhere; records store
the value computed from the data. Training takes about 80 s on one core for the half-width
ResNet-18.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.pspnet_small import model

task = dict(
    type="kdep_bench.transfer.segmentation.Segmentation",
    name="pocket_seg",
    family="segmentation",
    version=1,
    split="test",
    metric="mIoU",
    direction="max",
    chance=0.09,
    recipe=dict(
        folder="cityscapes",
        model=model,
        classes=(
            "mammal",
            "bird",
            "other_animal",
            "food",
            "plant",
            "household",
            "coin",
            "vehicle",
            "scene",
        ),
        palette=(
            (230, 25, 75),
            (60, 180, 75),
            (255, 225, 25),
            (0, 130, 200),
            (245, 130, 48),
            (145, 30, 180),
            (70, 240, 240),
            (240, 50, 230),
            (60, 60, 60),
        ),
        scale=(160, 120),
        resize_ratio=(0.75, 1.5),
        crop=(96, 128),
        dilate=False,
        iters=400,
        batch=8,
        lr=0.02,
        head_lr_mult=10,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=None,
        warmup=20,
        poly_power=0.9,
        frozen_stages=-1,
        norm_eval=False,
    ),
)

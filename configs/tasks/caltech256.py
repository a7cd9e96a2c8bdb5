"""Caltech-256, fine-tuning: 60 training images of each of 257 classes, 15,187 test images.

Recipe of CVMI-Lab/KDEP: 224 px, SGD, batch size 64, weight decay 5e-4, 150 epochs, learning rate
x0.1 every 50 epochs, RandomResizedCrop and flip.

Differences from the public code: the last epoch is scored (the public code reports the best *test*
epoch, which is biased upwards); every run has a different seed; the input normalisation is that of
pre-training; the suite sets the number of transfer seeds (2 in the public code); the score is the
top-1 accuracy over all test images.
"""

task = dict(
    type="kdep_bench.transfer.full_classification.OfficialFineTune",
    name="caltech256",
    family="classification",
    version=1,
    split="test",
    metric="top1",
    direction="max",
    chance=0.0039,
    recipe=dict(
        set="caltech256",
        epochs=150,
        step_epochs=50,
        batch=64,
        test_batch=256,
        lr=0.001,
        head_lr_mult=1,
        momentum=0.9,
        weight_decay=5e-4,
        clip_norm=None,
        crop_scale=(0.08, 1.0),
        resize=256 / 224,  # of test images: shorter edge / input size, before the centre crop
        workers=4,
        frozen_stages=-1,
        norm_eval=False,
    ),
)

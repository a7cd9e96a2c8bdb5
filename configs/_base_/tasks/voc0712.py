"""PASCAL VOC 07+12 detection: 16,551 training images, scored on 07 test.

configs/tasks/voc0712_fpn.py and voc0712_c4.py add the detector.

Recipe of CVMI-Lab/KDEP: batch size 16 over all GPUs, learning rate 0.02, 18,000 steps, learning
rate x0.1 after 12,000 and 16,000 steps, SyncBN instead of BatchNorm.

Differences from the public code: mmdet's Faster R-CNN instead of Detectron2's; every run has a
different seed; the input normalisation is that of pre-training. Image sizes and warm-up of
that recipe are unknown; the values here are usual for this detector: short edge 480 to 800 in
training and 800 in testing, 100 steps of linear warm-up. The score is the mean of the
11-point AP over the IoU thresholds 0.50, 0.55, ..., 0.95. Difficult objects are ignored in training
and scoring.
"""

task = dict(
    type="kdep_bench.transfer.full_detection.OfficialDetection",
    family="detection",
    version=1,
    split="test",
    metric="AP",
    direction="max",
    chance=0.0,
    recipe=dict(
        set="voc",
        scales=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        test_scale=800,
        long_edge=1333,
        iters=18000,
        steps=(12 / 18, 16 / 18),
        batch=16,
        test_batch=2,
        lr=0.02,
        head_lr_mult=1,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=None,
        warmup=100,
        frozen_stages=-1,
        norm_eval=False,
        workers=4,
    ),
)

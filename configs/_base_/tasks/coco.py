"""COCO 2017 detection: 118,287 training images, scored on val2017.

configs/tasks/coco_fpn.py and coco_c4.py add the detector.

Recipe of CVMI-Lab/KDEP: batch size 16 over all GPUs, learning rate 0.02, 90,000 steps, learning
rate x0.1 after 60,000 and 80,000 steps, SyncBN instead of BatchNorm.

Differences from the public code: mmdet's Faster R-CNN instead of Detectron2's; every run has a
different seed; the input normalisation is that of pre-training. Image sizes and warm-up of
that recipe are unknown; the values here are usual for this detector: short edge 640 to 800 in
training and 800 in testing, 1000 steps of linear warm-up. Crowd regions are ignored in
training and scoring.
"""

task = dict(
    type="kdep_bench.transfer.full_detection.OfficialDetection",
    family="detection",
    version=1,
    split="val2017",
    metric="bbox_mAP",
    direction="max",
    chance=0.0,
    recipe=dict(
        set="coco",
        scales=(640, 672, 704, 736, 768, 800),
        test_scale=800,
        long_edge=1333,
        iters=90000,
        steps=(60 / 90, 80 / 90),
        batch=16,
        test_batch=2,
        lr=0.02,
        head_lr_mult=1,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=None,
        warmup=1000,
        frozen_stages=-1,
        norm_eval=False,
        workers=4,
    ),
)

"""Detection in fog with boxes for clear scenes only: Cityscapes to Foggy Cityscapes.

Data         `kdep-bench data foggy_cityscapes`: 2,975 clear training scenes with boxes of eight
             classes, the same scenes in fog (attenuation 0.02) without boxes, and 500 foggy scenes
             for the score, the AP at IoU 0.5 that work on domain adaptation reports.
Training     reads the clear scenes with their boxes. A transfer method, such as `ssda`, may also
             read the foggy training scenes. Without one, the score shows how much a detector loses
             in fog that it has not seen.
             `foggy_cityscapes_source` scores the same detector on the 500 clear scenes.
Recipe       chosen in this project, not tuned: Faster R-CNN FPN
             (configs/_base_/models/faster_rcnn_fpn.py), short edge 600 as usual for this pair of
             domains, batch 8, 12,000 steps (32 epochs), learning rate 0.01, multiplied by 0.1 after
             two thirds and eight ninths. SSDA-YOLO trains YOLOv5 at 960 pixels instead, so its
             published scores cannot be compared with these.
Outcome      not measured yet.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.faster_rcnn_fpn import model

task = dict(
    type="kdep_bench.transfer.full_domain_detection.FoggyCityscapes",
    name="foggy_cityscapes",
    family="detection",
    version=1,
    split="val",
    metric="bbox_mAP_50",
    direction="max",
    chance=0.0,
    tests_on=["foggy_cityscapes", "cityscapes"],
    recipe=dict(
        set="foggy_cityscapes",
        scored_on="target",
        head="fpn",
        model=model,
        scales=(600,),
        test_scale=600,
        long_edge=1200,
        iters=12000,
        steps=(2 / 3, 8 / 9),
        batch=8,
        test_batch=2,
        lr=0.01,
        head_lr_mult=1,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=None,
        warmup=500,
        frozen_stages=-1,
        norm_eval=False,
        workers=4,
    ),
)

"""Domain adaptation of a detector: boxes for source images, none for target images (SSDA-YOLO).

Source       Zhou et al., CVIU 2023; hnuzhy/SSDA-YOLO. The loss terms, weights and thresholds are
             from there. Images are moved to the style of the other domain with FDA (Yang and
             Soatto, CVPR 2020; YanchaoYang/FDA), instead of a trained translation network.
Needs        a task with a target domain, such as `pocket_det_fog` or `foggy_cityscapes`; the tasks
             with `_source` in their name score the same detector on the source domain.
Differs      from the paper in the detector (the task's, here Faster R-CNN), in the style, and in
             target images without a confident box: they are left out, where the authors invent a
             random box. See kdep_bench/transfer/methods/ssda.py.
Outcome      in `domains_pocket`, whose fog is strong: no significant gain on foggy scenes (+0.5
             points [-0.1, +1.1] after kdep) or on clear scenes (+0.6 [-1.6, +2.7]). The settings
             were not tuned for these scenes.
Cost         3.3 times the computation of the task's training: the detector is trained on the source
             images in the target style and on target images, and its moving average reads the
             target images.
"""

from kdep_bench.transfer.methods.ssda import SSDA

method = dict(
    name="ssda",
    family="transfer",
    reconstruction=True,  # shown as "(re-implementation)"
    source="Zhou et al., CVIU 2023; hnuzhy/SSDA-YOLO; style: YanchaoYang/FDA",
    pretrained_by="kdep",
    transfer=dict(
        type=SSDA,
        styled=1.0,
        distillation=0.005,
        consistency=2.0,
        decay=0.99,
        score=0.5,
        iou=0.3,
        boxes=20,
        size=0.05,  # largest exchanged frequency / shorter side
    ),
)

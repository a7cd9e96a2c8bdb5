"""The paper's protocol with MobileNetV2 as the student; otherwise as `paper_r18`.

Command   python tools/run_suite.py paper_mnv2 --dry-run     # or --rehearse, as for paper_r18
Cost      not measured; --dry-run estimates it. Data, views and teacher caches of paper_r18 are
          reused
Outcome   as for paper_r18

From CVMI-Lab/KDEP: learning rate 0.1 in pre-training, 0.006 on Cityscapes; Faster R-CNN with FPN.

Differences from the paper, in addition to those of paper_r18: the feature of MobileNetV2 has 1280
channels, more than those of Swin-B (1024) and DINOv2 ViT-B (768). The public code has no such case;
here the method `kdep_zero_pad` pads the target with zeros. Segmentation uses no dilated
convolutions, because the paper states them for ResNet-18 only; the head reads the levels at strides
8, 16 and 32.
"""

from mmengine.config import read_base

with read_base():
    from .paper_r18 import suite

kdep_zero_pad = dict(
    base="kdep",
    name="kdep_zero_pad",
    align=dict(_delete_=True, type="svd", policy="zero_pad"),
)

suite.update(
    name="paper_mnv2",
    about="MobileNetV2 at 224 px, ImageNet-1K, the protocol of KDEP (CVPR 2022)",
    students=["mobilenetv2"],
    tasks=[
        "cifar100",
        "cub200",
        "dtd",
        "caltech256",
        dict(base="cityscapes", recipe=dict(lr=0.006)),
        "voc12_seg",
        "ade20k",
        "voc0712_fpn",
        "coco_fpn",
    ],
    variants=[
        dict(
            teacher=teacher,
            # scratch does not depend on the data fraction, so it is listed for fraction 1 only.
            methods=[*methods, "conv1x1", "supervised", *["scratch"] * (share == 1)],
            shares=[share],
            budget=dict(epochs=epochs),
        )
        for teacher, methods in (
            ("resnet50", ["kdep", "logit_kd"]),
            ("microsoft_resnet50", ["kdep"]),
            ("swin_b", [kdep_zero_pad, "logit_kd"]),
            ("dinov2_vitb14", [kdep_zero_pad]),
        )
        for share, epochs in ((1.0, 9), (1.0, 18), (1.0, 90), (0.1, 90), (0.1, 180), (0.1, 900))
    ],
)
suite.budget.update(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4))

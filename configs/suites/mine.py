"""Template: pre-train ResNet-18 from your teacher on your images, test it on your own tasks.

Command   python tools/run_suite.py mine --dry-run, then without --dry-run
Cost      --dry-run estimates it

First edit configs/data/mine.py (paths, class names), then this file: the teacher and its weights
file (`python tools/run_suite.py --list teachers`), sizes in pixels, and numbers of steps. The suite
compares KDEP with no pre-training. If the pool has labels (labels=True, pool_labels=True), add the
method "supervised", the most important baseline.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.faster_rcnn_fpn import model as detector
    from .._base_.models.pspnet_full import model as segmenter

suite = dict(
    name="mine",
    about="my teacher, my images, my tasks",
    data="mine",
    # weights= is the path of a file; the teacher's config says where to download it.
    teacher=dict(base="resnet50", weights=None),
    students=["resnet18"],
    methods=["kdep", "scratch"],
    tasks=[
        # With `classify` in the data: a linear probe on frozen features, and fine-tuning.
        # dict(base="pocket_probe", name="mine_probe", chance=None, recipe=dict(train_share=1.0)),
        # dict(
        #     base="pocket_finetune",
        #     name="mine_finetune",
        #     chance=None,
        #     recipe=dict(epochs=20, batch=64, lr=0.05),
        # ),
        dict(
            base="pocket_det",
            name="mine_det",
            recipe=dict(
                model=dict(_delete_=True, **detector), scale=(1333, 800), iters=18000, batch=16
            ),
        ),
        dict(
            base="pocket_seg",
            name="mine_seg",
            recipe=dict(
                model=dict(_delete_=True, **segmenter),
                classes=("road", "field", "water"),
                palette=((128, 64, 128), (107, 142, 35), (70, 130, 180)),
                scale=(1024, 512),
                crop=(512, 512),
                dilate=True,
                iters=20000,
                batch=16,
            ),
        ),
    ],
    views=dict(scale=[0.2, 1.0]),
    budget=dict(
        epochs=90,
        views=4,
        batch=256,
        optimizer=dict(type="SGD", lr=0.15, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.03,
    ),
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    claims=["kdep_beats_scratch"],
)

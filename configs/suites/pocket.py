"""The main job: KDEP against supervised pre-training and no pre-training, on three tasks.

Command: python tools/run_suite.py pocket
"""

suite = dict(
    name="pocket",
    about="half-width ResNet-18 at 64 px, teacher EfficientNet-Lite0, pocket data",
    data="pocket",
    teacher="efficientnet_lite0",
    students=["resnet18_w32"],
    methods=["kdep", "supervised", "scratch"],
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos", "pocket_det", "pocket_seg"],
    shares=[1.0],
    budget=dict(
        epochs=12,
        views=4,
        batch=128,
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.05,
    ),
    seeds=dict(pretrain=[0], transfer=[0, 1, 2]),
    claims=["kdep_beats_scratch", "kdep_beats_supervised"],
)

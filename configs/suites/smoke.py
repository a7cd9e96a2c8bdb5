"""The stages of `pocket` on tiny data, to test that everything runs; its scores mean nothing.

Command: python tools/run_suite.py smoke
"""

suite = dict(
    name="smoke",
    about="every stage and task of the pocket suite on tiny data; the scores mean nothing",
    data="smoke",
    teacher="efficientnet_lite0",
    students=["resnet18_w32"],
    methods=["kdep", "supervised", "scratch"],
    tasks=["smoke_probe", "smoke_finetune", "smoke_photos", "smoke_det", "smoke_seg"],
    shares=[1.0],  # data fractions
    budget=dict(
        epochs=2,
        views=1,
        batch=32,
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.1,
    ),
    seeds=dict(pretrain=[0], transfer=[0]),
    claims=[],
)

"""The main suite: KDEP against supervised pre-training and no pre-training, on three kinds of task.

Command   python tools/run_suite.py configs/suites/pocket.py   (or `make pocket`)
Cost      see README: under an hour on two CPU cores with bfloat16 support, 3 GB in work_dirs/
Outcome   45 runs: 3 methods x 5 tasks x 3 transfer seeds, one pre-training seed. Expected: kdep is
          better than scratch; supervised is a strong baseline here, because it is trained on the
          classes of the tasks

Every method is trained for 16 epochs on the same 32,000 images with two fixed views, in the same
order, by SGD with the paper's momentum 0.9 and weight decay 5e-4, at batch 64 and learning rate
0.2; kdep's loss weight is set automatically. Differences from the paper's protocol: a cosine
schedule instead of steps, images of 64 px for the student and 128 px for the teacher, bfloat16,
batch 64.
"""

suite = dict(
    name="pocket",
    about="half-width ResNet-18 at 64 px, teacher EfficientNet-Lite0, pocket data",
    data="pocket",
    teacher="efficientnet_lite0",
    students=["resnet18_w32"],
    methods=["kdep", "supervised", "scratch"],
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos", "pocket_det", "pocket_seg"],
    shares=[1.0],  # data fractions
    views=dict(scale=[0.4, 1.0]),
    budget=dict(
        epochs=16,
        views=2,
        batch=64,
        optimizer=dict(type="SGD", lr=0.2, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.03,
        precision="bfloat16",
    ),
    seeds=dict(pretrain=[0], transfer=[0, 1, 2]),
    claims=["kdep_beats_scratch", "kdep_beats_supervised"],
)

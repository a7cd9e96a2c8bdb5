"""The paper's protocol with ResNet-18: four teachers, five methods, two data fractions, nine tasks.

Command   python tools/run_suite.py paper_r18 --dry-run      # the stages and their cost
          python tools/run_suite.py paper_r18 --rehearse     # every stage, tiny data, on a CPU
          KDEP_DATA=/data python tools/run_suite.py paper_r18
Cost      not measured; --dry-run estimates it, --budget-hours and --fit-budget limit it
Outcome   kdep, conv1x1, logit_kd (of teachers with logits), supervised and scratch at 10 % of
          ImageNet-1K for 90, 180 and 900 epochs and at 100 % for 9, 18 and 90, three seeds each

From CVMI-Lab/KDEP: SGD, momentum 0.9, weight decay 5e-4, batch 512 over all GPUs, learning rate
0.3, multiplied by 0.1 after each third of the steps, float32, 224 px. Budgets are compared at equal
numbers of steps (22,500 to 225,000).

Differences from the paper, the same for all methods: two fixed views per image (crop and flip)
instead of a new crop in every epoch, because the teacher's features are cached per view; no colour
jitter and no PCA lighting; the 10 % are chosen at random without labels (the public code takes 128
images per class, which reads labels); the loss weight is set automatically instead of by hand for
each teacher; several seeds for pre-training and transfer; no setting is chosen by test scores.
"""

suite = dict(
    name="paper_r18",
    about="ResNet-18 at 224 px, ImageNet-1K, the protocol of KDEP (CVPR 2022)",
    data="imagenet",
    students=["resnet18"],
    methods=["kdep", "conv1x1", "logit_kd", "supervised", "scratch"],
    tasks=[
        "cifar100",
        "cub200",
        "dtd",
        "caltech256",
        "cityscapes",
        "voc12_seg",
        "ade20k",
        "voc0712_c4",
        "coco_c4",
    ],
    views=dict(scale=[0.08, 1.0]),
    budget=dict(
        epochs=90,
        views=2,
        batch=512,
        optimizer=dict(type="SGD", lr=0.3, momentum=0.9, weight_decay=5e-4),
        schedule="step",
        warmup=0.0,
        precision="float32",
    ),
    variants=[
        dict(
            teacher=teacher,
            # scratch does not depend on the data fraction, so it is listed for fraction 1 only.
            methods=["kdep", "conv1x1", *logit_methods, "supervised", *["scratch"] * (share == 1)],
            shares=[share],
            budget=dict(epochs=epochs),
        )
        for teacher, logit_methods in (
            ("resnet50", ["logit_kd"]),
            ("microsoft_resnet50", []),
            ("swin_b", ["logit_kd"]),
            ("dinov2_vitb14", []),
        )
        for share, epochs in ((1.0, 9), (1.0, 18), (1.0, 90), (0.1, 90), (0.1, 180), (0.1, 900))
    ],
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    claims=[
        "data_10x_time_5x",
        "kdep_10pct_vs_supervised",
        "kdep_beats_conv1x1",
        "kdep_beats_logit_kd",
        "kdep_beats_scratch",
    ],
)

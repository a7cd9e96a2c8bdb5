"""One method on the smallest meaningful data, to compare a GPU's scores with a CPU's.

Command   python tools/gpu_check.py (runs this suite on a GPU)
Cost      about four minutes on two cores
Outcome   one score per task, inside the prediction interval of `gpu_check_reference`

The scores show whether training works equally on two machines; they do not compare methods.
"""

suite = dict(
    name="gpu_check",
    about="one method on a small pool, to compare a GPU's scores with a CPU's",
    data="gpu_check",
    teacher="efficientnet_lite0",
    students=["resnet18_w32"],
    methods=["kdep"],
    tasks=["pocket_probe", "pocket_finetune", "pocket_det", "pocket_seg"],
    views=dict(scale=[0.4, 1.0]),
    budget=dict(
        epochs=8,
        views=2,
        batch=64,
        optimizer=dict(type="SGD", lr=0.2, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.03,
        precision="bfloat16",
    ),
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),  # "diagonal": seed i with seed i
    claims=[],
)

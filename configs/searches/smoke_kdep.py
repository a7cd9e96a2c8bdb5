"""The search of `pocket_kdep` on tiny data, to test that everything runs; its scores mean nothing.

Command: kdep-bench search smoke_kdep
"""

from kdep_bench.students.space import ResNetFamily

search = dict(
    name="smoke_kdep",
    about="a search of students and settings on tiny data; the scores mean nothing",
    source="AutoKD (arXiv 2111.03555), a re-implementation with another family of students",
    reimplementation=True,
    family=dict(type=ResNetFamily, input_px=64, depth1=1, depth2=1, growth=1.5, stem="3x3"),
    space=[
        dict(key="student.depth3", values=[1, 2]),
        dict(key="student.width", values=[8, 16, 32]),
        dict(key="method.transform.n", values=[1.0, 3.0]),
        dict(key="method.optimizer.lr", values=[0.05, 0.1]),
    ],
    limits=dict(params=150_000),
    data="smoke",
    teacher="efficientnet_lite0",
    method="kdep",
    task=dict(base="smoke_probe", name="smoke_probe_val", split="val"),
    budget=dict(
        batch=32,
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.1,
    ),
    halving=dict(epochs=1, factor=2, rungs=2),
    trials=3,
)

"""Contraction of TinyViT-11M in three steps, to the size of `resnet18_w32`; pocket data.

Command   kdep-bench search pocket_contraction
Cost      not measured; 12 trials of 16,000 samples, in addition to the stages that it shares with
          `pocket`, and a teacher cache of ten probabilities per view. The limits of the first step
          allow about twice the FLOPs of the last
Outcome   searches/pocket_contraction-contraction-0.jsonl and configs/students/tinyvit_....py.
          Compare this student with `resnet18_w32`, and with the best of `pocket_kdep`, in a suite,
          on the test split and with several seeds

The contraction of TinyViT (Wu et al., ECCV 2022, section 3.2), re-implemented: depth, width and
expansion of a large student are reduced in steps with decreasing limits, and each step begins with
the best candidate of the step before. The score is the accuracy of a linear probe on the validation
split after a short distillation by `tinyvit`; the test split is not read. Differences from the
paper: FLOPs are limited, not throughput, and the sizes of attention windows are fixed, because maps
of images of 64 pixels have few positions.
"""

from kdep_bench.students.tiny_vit import TinyVitFamily

search = dict(
    name="pocket_contraction",
    about="TinyViT-11M, contracted to the size of resnet18_w32 by a short proxy",
    source="TinyViT (ECCV 2022), a re-implementation of its contraction",
    reimplementation=True,
    family=dict(type=TinyVitFamily, input_px=64),
    space=[
        dict(key="student.heads1", values=[1, 2]),
        dict(key="student.heads2", values=[2, 3, 4]),
        dict(key="student.heads3", values=[3, 4, 5, 6, 8]),
        dict(key="student.heads4", values=[6, 8, 10, 14]),
        dict(key="student.depth2", values=[1, 2]),
        dict(key="student.depth3", values=[2, 4, 6]),
        dict(key="student.depth4", values=[1, 2]),
        dict(key="student.expansion", values=[2.0, 3.0, 4.0]),
        dict(key="student.mlp_ratio", values=[2.0, 3.0, 4.0]),
    ],
    limits=dict(params=2_800_000, flops=79_000_000),
    data="pocket",
    teacher="efficientnet_lite0",
    method="tinyvit",
    task="pocket_probe_val",
    fraction=0.25,
    views=dict(scale=[0.4, 1.0]),
    budget=dict(
        views=2,
        batch=64,
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.01),
        schedule="cosine",
        warmup=0.1,
        precision="bfloat16",
    ),
    halving=dict(epochs=2, rungs=1),
    sampler="contraction",
    steps=3,
    trials=12,
    runtime=dict(timed=False),  # the tables have no times
)

"""28 methods under one protocol: the pocket data, a tenth of its images, three seeds.

Command   python tools/run_suite.py configs/suites/methods_pocket.py   (can be stopped and resumed)
Cost      1 h 55 min on two cores. Per method and seed: 800 steps at batch 64 (90 to 105 s on one
          core; dml 180 s; with a teacher assistant 190 s more), then 43 s of tasks
Outcome   results/methods_pocket: the method families compared with KDEP, supervised and no
          pre-training, each with step time, memory, extra parameters and extra forward passes.
          Hints at the teacher's maps are best; relations between images are last on average

Equal for all methods: the 3,200 images, their two fixed views, 16 epochs, batch 64, weight decay
and schedule. Labels are read only by methods that use them. Of the learning rates 0.05, 0.2 and
0.8, each method has the one with the best validation score in `methods_pocket_grid`. Teacher
assistants have the learning rate 0.2. Supervised and scratch are the same stages as in
`pocket_full` at data fraction 0.1, where kdep has the learning rate 0.2. Detection and
segmentation, with one seed, are in the suite `methods_pocket_dense`, because means over one and
over three seeds must not be in one table. `methods_pocket_compute` has the costlier methods at
kdep's compute.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

arms = [
    "scratch",
    "supervised",
    "kdep",
    "svd",
    "phis",
    "conv1x1",
    "vkd",
    "logit_kd",
    "nkd",
    "tf_nkd",
    "continuation",
    "continuation_labels",
    "ctkd",
    "eskd",
    "eskd_teacher",
    "fitnets",
    "pursuhint",
    "nfd",
    "rkd",
    "similarity",
    "pkt",
    "correlation",
    "instance_graph",
    "view_gram",
    "takd",
    "kdep_assistant",
    "dml",
    "mean_teacher",
]
# Learning rates chosen in `methods_pocket_grid`; the other methods have the budget's 0.2. A test
# compares them with the results of that suite.
rates = dict(
    continuation=0.8,
    continuation_labels=0.8,
    ctkd=0.8,
    dml=0.05,
    eskd_teacher=0.05,
    fitnets=0.8,
    kdep=0.05,
    kdep_assistant=0.8,
    mean_teacher=0.05,
    nkd=0.05,
    pursuhint=0.8,
    view_gram=0.05,
)
methods = {
    name: dict(base=name, optimizer=dict(lr=rates[name])) if name in rates else dict(base=name)
    for name in arms
}

suite.update(
    name="methods_pocket",
    about="all methods under one protocol, a tenth of the pocket images, classification",
    methods=list(methods.values()),
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos"],
    shares=[0.1],  # data fractions
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    claims=[  # the claims in configs/claims/ are about the whole pool
        dict(base=name, a=dict(share=0.1), b=dict(share=0.1))
        for name in (
            "kdep_beats_conv1x1",
            "kdep_beats_logit_kd",
            "pts_helps",
            "kdep_beats_scratch",
            "kdep_beats_supervised",
        )
    ],
)

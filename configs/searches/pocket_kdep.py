"""Search for a student no larger than `resnet18_w32`, with settings of KDEP, on the pocket data.

Command   kdep-bench search pocket_kdep                      proposals by TPE
          kdep-bench search pocket_kdep --sampler random     random proposals, as a baseline
Cost      not measured; estimated 40 minutes on one core per sampler and seed, in addition to the
          stages that it shares with `pocket` (data, views, teacher cache). 27 trials with 8,000
          samples; about a third of them continue with 24,000 samples, and about a third of these
          with 72,000. That is about 0.8 million samples, 1.5 times the pre-training of `pocket`
          (16 minutes on one core), and about 45 linear probes of 10 to 15 s
Outcome   searches/pocket_kdep-tpe-0.jsonl and configs/students/resnet_....py. Compare this student
          with `resnet18_w32` in a suite, on the test split and with several seeds. To compare
          samplers, run each with several values of --seed

A re-implementation of AutoKD with other students: ResNets with variable depth, width, growth and
stem. AutoKD's students are random graphs (Watts-Strogatz, per level). As in AutoKD, Bayesian
optimisation proposes a student together with settings of distillation, and a short training scores
it. The score is the accuracy of a linear probe on the validation split with a fixed regularisation;
the test split is not read.
"""

from kdep_bench.students.space import ResNetFamily

search = dict(
    name="pocket_kdep",
    about="students within the size of resnet18_w32, and settings of KDEP, by a short proxy",
    source="AutoKD (arXiv 2111.03555), a re-implementation with another family of students",
    reimplementation=True,
    family=dict(type=ResNetFamily, input_px=64),
    space=[
        dict(key="student.depth1", values=[1, 2, 3]),
        dict(key="student.depth2", values=[1, 2, 3]),
        dict(key="student.depth3", values=[1, 2, 3]),
        dict(key="student.depth4", values=[1, 2, 3]),
        dict(key="student.width", values=[16, 24, 32, 40, 48]),
        dict(key="student.growth", values=[1.5, 2.0]),
        dict(key="student.stem", values=["7x7", "3x3"]),
        dict(key="method.transform.n", values=[1.0, 2.0, 3.0, 5.0, 7.0]),
        dict(key="method.optimizer.lr", values=[0.05, 0.1, 0.2, 0.4]),
    ],
    limits=dict(params=2_800_000, flops=79_000_000),
    data="pocket",
    teacher="efficientnet_lite0",
    method="kdep",
    task="pocket_probe_val",
    fraction=0.25,
    views=dict(scale=[0.4, 1.0]),
    budget=dict(
        views=2,
        batch=64,
        optimizer=dict(type="SGD", lr=0.2, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.03,
        precision="bfloat16",
    ),
    halving=dict(epochs=1, factor=3, rungs=3),
    trials=27,
    runtime=dict(timed=False),  # the tables have no times
)

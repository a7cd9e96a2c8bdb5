"""The learning-rate grid of `methods_pocket`: every method at 0.05, 0.2 and 0.8.

Command   python tools/run_suite.py configs/suites/methods_pocket_grid.py
Cost      82 runs, each of one pre-training seed and a linear probe on the validation split;
          47 minutes on two shared cores in addition to the 28 methods at 0.2. The tables report no
          times, because the machine was shared
Outcome   three rows per method. The rate with the highest validation score is used, or 0.2 (the
          rate of `pocket`) if scores are equal. For 12 of 27 methods it is not 0.2; for kdep it is
          0.05. conv1x1 diverges at 0.8: this run failed

The losses of the methods differ in scale: kdep, the hints and the projectors start at 20; the
relation methods, with their published weights, start much lower. A factor of four in both
directions tests whether the common rate suits a method at all. A finer grid would not help: with a
single seed and 400 images, a score of 35 % has a standard error of 2.4 points.

The suite reads only the validation split (`pocket_probe_val`, with a fixed regularisation), not the
test split. The chosen rates are `rates` in `methods_pocket`.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import arms, suite

suite.update(
    name="methods_pocket_grid",
    about="every method at three learning rates, scored on the validation split",
    claims=[],
    methods=[
        *arms,
        *(
            dict(base=name, name=f"{name}-lr{rate}", optimizer=dict(lr=rate))
            for name in arms
            if name != "scratch"
            for rate in (0.05, 0.8)
        ),
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),  # seed i with seed i
    runtime=dict(timed=False),  # the tables have no times
)

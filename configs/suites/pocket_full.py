"""Main result: `pocket` with three pre-training seeds, on all and on 10 % of the images.

Command   python tools/run_suite.py configs/suites/pocket_full.py   (or `make pocket-full`)
Cost      see results/README.md; hours, can be stopped and resumed
Outcome   75 runs: 2 trained methods x 2 data fractions x 3 seeds x 5 tasks, and scratch. Seed i is
          used for pre-training and for transfer, so the standard deviation includes the variance of
          both. With a tenth of the images, 16 epochs have a tenth of the steps. Finished stages of
          `pocket` are reused.

The second student, EfficientNet-Lite0, is in the suite `pocket_lite0` with a smaller budget,
because its training takes four to eight times as long on a CPU.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_full",
    about="as pocket, with three pre-training seeds and two data fractions",
    shares=[1.0, 0.1],  # data fractions
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    # The published run was on a shared machine: its wall times are not valid measurements.
    runtime=dict(timed=False),
    claims=["kdep_beats_scratch", "kdep_beats_supervised", "kdep_10pct_vs_supervised"],
)

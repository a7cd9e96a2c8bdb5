"""The published evidence: as `pocket`, with pre-training seeds as well, and a tenth of the images.

Command   python tools/run_suite.py configs/suites/pocket_full.py   (or `make pocket-full`)
Cost      see results/README.md; hours: stop it and go on at will
Outcome   75 cells: 2 trained arms x 2 shares x 3 seeds x 5 tasks, and scratch. Seed i pre-trains,
          then transfers, so an interval holds both kinds of luck. A tenth of the images at the
          same 16 epochs is a tenth of the steps. It takes over the finished stages of `pocket`.

The second student, EfficientNet-Lite0 with its own ImageNet weights as a rival, trains four to
eight times slower on a CPU and has a budget of its own: `pocket_lite0`.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_full",
    about="as pocket, with three pre-training seeds and two data shares",
    shares=[1.0, 0.1],
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),
    # Other work shared the machine of the published run: its wall times are no measurement.
    runtime=dict(timed=False),
    claims=["kdep_beats_scratch", "kdep_beats_supervised", "kdep_10pct_vs_supervised"],
)

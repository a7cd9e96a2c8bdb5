"""The optimiser grid of `methods_pocket`: every arm at learning rates 0.05, 0.2 and 0.8.

Command   python tools/run_suite.py configs/suites/methods_pocket_grid.py
Cost      the arms at 0.2 are stages of `methods_pocket`; twice as many at the other rates, one seed
          each, and a linear probe on the validation split, by estimate an hour and three quarters
          of one idle core; not run yet
Outcome   three rows a method. The one with the highest validation score is its rate; at equal
          scores it is 0.2, that of all arms. A method whose rate is another then stands in
          `methods_pocket` as dict(base=..., optimizer=dict(lr=...)), for all its seeds.

The losses are not of one scale: kdep, the hints and the projectors start at 20 by rule, the
relation methods with their published weights far below. Steps of a factor of four either side ask
whether the common rate suits an arm at all, which is what one seed can tell.

The choice looks at the validation split alone (`pocket_probe_val`, at a fixed regularisation) and
at one pre-training seed; the test split is not read by this suite. Until it has been run, all arms
of `methods_pocket` stand at 0.2, the rate of the published kdep and supervised arms.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import suite

suite.update(
    name="methods_pocket_grid",
    about="every rival at three learning rates, scored on the validation split",
    claims=[],
    methods=[
        *suite["methods"],
        *(
            dict(base=name, name=f"{name}-lr{rate}", optimizer=dict(lr=rate))
            for name in suite["methods"]
            if name != "scratch"
            for rate in (0.05, 0.8)
        ),
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),
    runtime=dict(timed=False),
)

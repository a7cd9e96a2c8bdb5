"""The optimiser grid of `methods_pocket`: every arm at learning rates 0.05, 0.2 and 0.8.

Command   python tools/run_suite.py configs/suites/methods_pocket_grid.py
Cost      82 cells, one pre-training seed and a linear probe on the validation split each; 47
          minutes of two cores beyond the 28 arms at 0.2, shared with some tests, so no times are
          stated
Outcome   three rows a method. The one with the highest validation score is its rate; at equal
          scores it is 0.2, that of `pocket`. 12 of 27 methods choose another, kdep 0.05;
          conv1x1 goes astray at 0.8, a failed cell

The losses are not of one scale: kdep, the hints and the projectors start at 20 by rule, the
relation methods with their published weights far below. Steps of a factor of four either side ask
whether the common rate suits an arm at all, which is what one seed can tell: the split has 400
images, and a score of 35 % a standard error of 2.4 points.

The choice looks at the validation split alone (`pocket_probe_val`, at a fixed regularisation) and
at one pre-training seed; the test split is not read by this suite. What it chose stands in
`methods_pocket` as `rates`.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import arms, suite

suite.update(
    name="methods_pocket_grid",
    about="every rival at three learning rates, scored on the validation split",
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
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),
    runtime=dict(timed=False),
)

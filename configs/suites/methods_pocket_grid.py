"""The optimiser grid of `methods_pocket`: every arm at learning rates 0.2 and 0.1.

Command   python tools/run_suite.py configs/suites/methods_pocket_grid.py
Cost      the arms at 0.2 are stages of `methods_pocket`; as many again at 0.1, one seed each, and a
          linear probe on the validation split, by estimate 50 minutes of one idle core; not run yet
Outcome   two rows a method. The one with the higher validation score is its rate; at equal scores
          it is 0.2, that of all arms. A method whose rate is 0.1 then stands in `methods_pocket` as
          dict(base=..., optimizer=dict(lr=0.1)), for all its seeds.

The choice looks at the validation split alone (`pocket_probe_val`, at a fixed regularisation) and
at one pre-training seed; the test split is not read by this suite. Until it has been run, all arms
of `methods_pocket` stand at 0.2, the rate of the published kdep and supervised arms.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import suite

suite.update(
    name="methods_pocket_grid",
    about="every rival at two learning rates, scored on the validation split",
    methods=[
        *suite["methods"],
        *(
            dict(base=name, name=f"{name}-lr0.1", optimizer=dict(lr=0.1))
            for name in suite["methods"]
            if name != "scratch"
        ),
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),
)

"""Learning rates of `methods_pocket_more`: each method at 0.05, 0.2, 0.8 and, if needed, others.

Command   python tools/run_suite.py configs/suites/methods_pocket_more_grid.py  (can be resumed)
Cost      not run yet. Per method, rate and seed a pre-training (90 to 105 s on one core for one
          pass of the student per image) and a linear probe of a few seconds
Outcome   not run yet. The rate with the highest mean validation score over two seeds is used

If the best rate is the smallest or largest of the first three, `added_rates` gets another one. The
suite does not read the test split.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket_more import arms, suite

added_rates = {}

suite.update(
    name="methods_pocket_more_grid",
    about="the methods of methods_pocket_more at several learning rates, on the validation split",
    methods=[
        dict(base=name, optimizer=dict(lr=rate), name=f"{name}-lr{rate}")
        if rate != 0.2
        else dict(base=name)
        for name in arms
        for rate in (0.05, 0.2, 0.8, *added_rates.get(name, ()))
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0, 1], transfer=[0, 1], pairs="diagonal"),  # seed i with seed i
)

"""The learning rates of `kdep_anatomy`: every method at 0.05, 0.2 and 0.8, and beyond if needed.

Command   python tools/run_suite.py configs/suites/kdep_anatomy_grid.py
Cost      a pre-training (90 to 105 s on one core) and a linear probe of a few seconds per run
Outcome   results/kdep_anatomy_grid: 67 of 68 scores; conv1x1 diverges at 0.8. The rate with the
          highest validation score is the method's rate in `kdep_anatomy`, with equal scores the one
          nearest to 0.2. It is inside the tried rates for every method. One seed and 400 images:
          the choice is noisy, and no method is compared here

The test split is not read by this suite. `wider` names the methods whose best rate was at the edge
of the first three; they are run at the next rate beyond, until the best one is inside the grid.
"""

from mmengine.config import read_base

with read_base():
    from .kdep_anatomy import arms, suite

trained = [name for name in arms if name != "scratch"]
rates_of = dict.fromkeys(trained, (0.05, 0.2, 0.8))
wider = dict(
    **dict.fromkeys(
        ("kdep", "kdep_maps", "pooled_pairs_s32", "hint_s32", "maps_rotation"), (0.0125,)
    ),
    **dict.fromkeys(("fitnets", "maps_before", "maps_pooled"), (1.6,)),
    kdep_hint=(1.6, 3.2),
)
for name, more in wider.items():
    rates_of[name] = (*rates_of[name], *more)

suite.update(
    name="kdep_anatomy_grid",
    about="the methods of kdep_anatomy at several learning rates, scored on the validation split",
    methods=[
        dict(arms["scratch"], name="scratch"),
        *(
            dict(
                arms[name],
                name=name if rate == 0.2 else f"{name}-lr{rate}",
                optimizer=dict(lr=rate),
            )
            for name in trained
            for rate in rates_of[name]
        ),
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),
    runtime=dict(timed=False),
)

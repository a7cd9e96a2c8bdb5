"""The learning rates of `kdep_anatomy`: every method at 0.05, 0.2, 0.8 and, if needed, at others.

Command   python tools/run_suite.py configs/suites/kdep_anatomy_grid.py
Cost      per run a pre-training (90 to 105 s on one core) and a linear probe (a few seconds)
Outcome   results/kdep_anatomy_grid: 67 of 68 scores; conv1x1 diverges at 0.8. For each method,
          `kdep_anatomy` uses the rate with the highest validation score, or of rates with equal
          scores the nearest to 0.2. The chosen rate is never the smallest or largest that was
          tried. With one seed and 400 images the choice is noisy; the scores do not compare methods

The suite does not read the test split. `added_rates` are lower or higher rates for the methods
whose best rate was the smallest or largest of the first three.
"""

from mmengine.config import read_base

with read_base():
    from .kdep_anatomy import arms, suite

trained_methods = [name for name in arms if name != "scratch"]
rates_by_method = dict.fromkeys(trained_methods, (0.05, 0.2, 0.8))
added_rates = dict(
    **dict.fromkeys(
        ("kdep", "kdep_maps", "pooled_pairs_s32", "hint_s32", "maps_rotation"), (0.0125,)
    ),
    **dict.fromkeys(("fitnets", "maps_before", "maps_pooled"), (1.6,)),
    kdep_hint=(1.6, 3.2),
)
for name, other_rates in added_rates.items():
    rates_by_method[name] = (*rates_by_method[name], *other_rates)

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
            for name in trained_methods
            for rate in rates_by_method[name]
        ),
    ],
    tasks=["pocket_probe_val"],
    claims=[],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),  # seed i with seed i
    runtime=dict(timed=False),  # the tables have no times
)

"""The order of the methods with 4, 16 and 64 epochs on a tenth of the images, three seeds.

Command   python tools/run_suite.py configs/suites/kdep_maps_budget.py  (can be stopped and resumed)
Cost      200, 800 (the runs of `kdep_anatomy`) and 3,200 steps per method and seed; about 80
          minutes in all on two cores
Outcome   results/kdep_maps_budget: fitnets is better than kdep_maps with every budget. kdep_maps is
          better than kdep and than supervised with 64 epochs; these claims are undecided with fewer

The learning rates are those chosen at 16 epochs.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .kdep_anatomy import methods, suite

# maps_4 is included so that the teacher cache has the same maps as in `kdep_anatomy` and is reused.
compared = ["scratch", "supervised", "kdep", "kdep_maps", "maps_4", "fitnets"]
pretrained = [methods[name] for name in compared if name not in ("scratch", "maps_4")]
epochs = (4.0, 64.0)
differences = [("kdep_maps", "kdep"), ("kdep_maps", "supervised"), ("fitnets", "kdep_maps")]

suite.update(
    name="kdep_maps_budget",
    about="KDEP on maps, KDEP, learned projectors and supervised at 4, 16 and 64 epochs",
    methods=[methods[name] for name in compared],
    variants=[dict(), *(dict(methods=pretrained, budget=dict(epochs=n)) for n in epochs)],
    claims=[
        above(
            *pair,
            title=f"{' beats '.join(pair)}, {n:g} epochs",
            suffix=f"_{n:g}_epochs",
            at=f"{n:g} epochs of the same images",
            epochs=n,
        )
        for pair in differences
        for n in (4.0, 16.0, 64.0)
    ],
)

"""KDEP on maps with a second teacher: EfficientNet-Lite2, three seeds, classification.

Command   python tools/run_suite.py configs/suites/kdep_maps_lite2.py   (can be stopped and resumed)
Cost      the teacher cache, and 9 pre-trainings as in `kdep_anatomy`; supervised and scratch are
          reused
Outcome   results/kdep_maps_lite2: kdep_maps and kdep are not significantly different (+0.8 points);
          fitnets is the best of the five methods

The learning rates were chosen in `kdep_anatomy_grid` with EfficientNet-Lite0, not with this
teacher.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .kdep_anatomy import methods, suite

compared = ["scratch", "supervised", "kdep", "kdep_maps", "fitnets"]
differences = [("kdep_maps", "kdep"), ("kdep_maps", "supervised"), ("fitnets", "kdep_maps")]

suite.update(
    name="kdep_maps_lite2",
    about="KDEP on maps, KDEP and learned projectors from EfficientNet-Lite2",
    teacher="efficientnet_lite2",
    methods=[methods[name] for name in compared],
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos"],
    claims=[above(*pair) for pair in differences],
)

"""KDEP on maps with a second student: MobileNetV2 of width 0.5, three seeds, classification.

Command   python tools/run_suite.py configs/suites/kdep_maps_mnv2.py   (can be stopped and resumed)
Cost      12 pre-trainings of 800 steps (not measured yet on an idle machine) and their tasks
Outcome   not run yet

The learning rates were chosen in `kdep_anatomy_grid` for the half-width ResNet-18, not for this
student.
"""

from mmengine.config import read_base

with read_base():
    from .kdep_anatomy import methods, suite

compared = ["scratch", "supervised", "kdep", "kdep_maps", "fitnets"]
differences = [("kdep_maps", "kdep"), ("kdep_maps", "supervised"), ("fitnets", "kdep_maps")]

suite.update(
    name="kdep_maps_mnv2",
    about="KDEP on maps, KDEP and learned projectors with MobileNetV2 of width 0.5",
    students=["mobilenetv2_w50"],
    methods=[methods[name] for name in compared],
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos"],
    claims=[
        dict(
            name=f"{better}_above_{other}",
            title=f"{better} against {other}",
            statement=f"{better} scores above {other} at the same data and epochs.",
            kind="difference",
            a=dict(method=better),
            b=dict(method=other),
        )
        for better, other in differences
    ],
)

"""KDEP on maps with another student (EfficientNet-Lite0's trunk) and teacher (Lite2), three seeds.

Command   python tools/run_suite.py configs/suites/kdep_maps_trunk.py   (can be stopped and resumed)
Cost      the teacher's two caches, 12 pre-trainings of 800 steps (about 10 minutes on one core of a
          machine with other work) and 45 transfers; nothing is shared with other suites but the
          data and the views
Outcome   results/kdep_maps_trunk: fitnets has the highest mean on all three tasks. It scores
          12.3 points more than kdep_maps, which is not significantly different from kdep (+0.2)
          and scores 6.9 points more than supervised, because of the photographs

The learning rates were chosen in `kdep_anatomy_grid` for the half-width ResNet-18 and the teacher
EfficientNet-Lite0, not for these networks.

MobileNetV2 cannot be the student of these methods: its last 1x1 convolution follows the last map of
its pyramid, so maps alone would leave it untrained.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .kdep_anatomy import methods, suite

compared = ["scratch", "supervised", "kdep", "kdep_maps", "fitnets"]
differences = [("kdep_maps", "kdep"), ("kdep_maps", "supervised"), ("fitnets", "kdep_maps")]

suite.update(
    name="kdep_maps_trunk",
    about="KDEP on maps, KDEP and learned projectors with the trunk of EfficientNet-Lite0",
    teacher="efficientnet_lite2",
    students=["efficientnet_lite0_trunk"],
    methods=[methods[name] for name in compared],
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos"],
    claims=[above(*pair) for pair in differences],
)

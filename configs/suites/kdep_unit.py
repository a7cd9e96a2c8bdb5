"""KDEP with a target in units of its root mean square (`kdep_unit`), with its own learning rate.

Command   python tools/run_suite.py configs/suites/kdep_unit.py   (can be stopped and resumed)
Cost      three pre-trainings of 800 steps (90 to 105 s on one core each) and 43 s of tasks for
          each; the other methods are those of `kdep_anatomy`. kdep_maps and fitnets are trained
          again, because this suite's teacher cache has fewer maps
Outcome   results/kdep_unit: no significant difference from kdep (-1.7 [-4.1, +0.8])

The protocol of `kdep_anatomy`. The learning rate 1.6 was chosen in `kdep_unit_grid` with one seed
and 400 images. The claims were fixed before the test split was read.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .kdep_anatomy import methods, suite

references = ["scratch", "supervised", "kdep", "svd", "kdep_maps", "fitnets"]

suite.update(
    name="kdep_unit",
    about="KDEP with a target in units of its root mean square, a tenth of the pocket images",
    methods=[
        *(methods[name] for name in references),
        dict(base="kdep_unit", optimizer=dict(lr=1.6)),
    ],
    claims=[above("kdep_unit", "kdep"), above("fitnets", "kdep_unit")],
)

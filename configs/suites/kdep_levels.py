"""Two and four levels of maps, each with learned projectors (FitNets) and without (KDEP on maps).

Command   python tools/run_suite.py configs/suites/kdep_levels.py   (can be stopped and resumed)
Cost      three pre-trainings and nine transfer runs; the others are reused from `kdep_anatomy`
Outcome   results/kdep_levels: fitnets_4 is 3.9 points above maps_4 and 3.8 above fitnets; maps_4 is
          5.9 above kdep_maps

In `kdep_anatomy`, KDEP on four levels has about the scores of FitNets on two. This suite adds
FitNets on four levels, with the same sum of loss weights and the learning rate chosen in
`kdep_levels_grid`.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .kdep_anatomy import methods, suite

four_levels = dict(
    base="fitnets",
    name="fitnets_4",
    objective=dict(levels=dict(_delete_=True, s4="s4", s8="s8", s16="s16", s32="s32"), weight=5.0),
)
# Claims: (method, lower-scoring method), chosen before fitnets_4 was scored on the test split.
differences = [("fitnets_4", "maps_4"), ("fitnets_4", "fitnets"), ("maps_4", "kdep_maps")]

suite.update(
    name="kdep_levels",
    about="KDEP on maps and FitNets at two and at four levels, classification",
    methods=[
        *(methods[name] for name in ("scratch", "kdep", "kdep_maps", "maps_4", "fitnets")),
        dict(four_levels, optimizer=dict(lr=0.8)),
    ],
    claims=[above(*pair) for pair in differences],
)

"""FitNets on two of the teacher's four levels, which are chosen by clustering.

Source       PURSUhInT (Expert Systems with Applications 2023), as quoted by a re-implementation.
Differs      from `fitnets` in the choice of the levels: two of four, always including the last.
Cost         clustering reads at most 10,000 cached views. Four levels are cached, two are used in
             training.
"""

from kdep_bench.objectives.pursuhint import Pursuhint

method = dict(
    name="pursuhint",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="PURSUhInT, Expert Systems with Applications 2023, as a re-implementation quotes it",
    objective=dict(
        type=Pursuhint,
        levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"),
        points=2,
        weight=10.0,
    ),
    align=None,
    transform=None,
)

"""FitNets with hint levels chosen by clustering the teacher's levels: those that differ most.

Source       PURSUhInT (Expert Systems with Applications 2023), as quoted by a re-implementation.
Differs      from `fitnets` in how the levels are chosen: two of four, the last one always included.
Cost         the clustering reads at most 10,000 cached views; four levels are read, two of them
             regressed.
"""

from kdep_bench.objectives.pursuhint import Pursuhint

method = dict(
    name="pursuhint",
    family="feature",
    labels_used=False,
    reconstruction=True,
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

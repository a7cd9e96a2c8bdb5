"""FitNets-style hints, label-free: a middle level regresses the teacher's map through a projector.

Source       Romero et al., ICLR 2015; RepDistiller's FitNet.py. Without cross-entropy.
Differs      from `kdep` in a learned projector, the middle of the network and its map.
"""

from kdep_bench.objectives.hints import Hints

method = dict(
    name="fitnets",
    family="feature",
    labels_used=False,
    needs=["maps"],
    source="Romero et al., ICLR 2015; HobbitLong/RepDistiller distiller_zoo/FitNet.py",
    objective=dict(type=Hints, levels=dict(s16="s16"), weight=20.0),
    align=None,
    transform=None,
)

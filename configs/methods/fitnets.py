"""FitNets-style hints, label-free: learned projectors from the student's maps at strides 16 and 32.

Source       Romero et al., ICLR 2015; RepDistiller's FitNet.py, without its cross-entropy. A hint
             at the last level is added, because otherwise no loss would train the last stage.
Differs      from `kdep` in learned projectors, maps instead of a pooled feature, and an additional
             hint at the middle of the network.
"""

from kdep_bench.objectives.hints import Hints

method = dict(
    name="fitnets",
    family="feature",
    labels_used=False,
    needs=["maps"],
    source="Romero et al., ICLR 2015; HobbitLong/RepDistiller distiller_zoo/FitNet.py",
    objective=dict(type=Hints, levels=dict(s16="s16", s32="s32"), weight=10.0),
    align=None,
    transform=None,
)

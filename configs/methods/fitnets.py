"""FitNets-style hints, label-free: two levels regress the teacher's maps through projectors.

Source       Romero et al., ICLR 2015; RepDistiller's FitNet.py. Without cross-entropy, which in the
             source teaches what lies behind the middle level: here a hint at the last level does,
             or the last stage would stay as it was drawn.
Differs      from `kdep` in learned projectors, maps instead of a pooled feature, and a hint at the
             middle of the network too.
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

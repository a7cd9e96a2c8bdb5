"""An instance graph of two layers: similarities of a batch, and how they change with depth.

Source       the idea of Liu et al., CVPR 2019 (IRG); a reading, see the objective for what differs.
Differs      from `similarity` by an earlier layer's graph and the change between the two.
Cost         O(B^2 D) a layer and batch.
"""

from kdep_bench.objectives.instance_graph import InstanceGraph

method = dict(
    name="instance_graph",
    family="relation",
    labels_used=False,
    reconstruction=True,
    needs=["pooled", "maps"],
    source="a reading of Liu et al., CVPR 2019 (IRG)",
    objective=dict(type=InstanceGraph, levels=dict(s16="s16"), edges=3000.0, change=3000.0),
    align=None,
    transform=None,
)

"""Similarities between the images of a batch at two layers, and their change between the layers.

Source       Liu et al., CVPR 2019 (IRG), re-implemented; `kdep_bench/objectives/instance_graph.py`
             lists the differences.
Differs      from `similarity` in two more terms: an earlier layer, and the change between layers.
Cost         O(B^2 D) per layer and batch.
"""

from kdep_bench.objectives.instance_graph import InstanceGraph

method = dict(
    name="instance_graph",
    family="relation",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["pooled", "maps"],
    source="re-implementation of Liu et al., CVPR 2019 (IRG)",
    objective=dict(type=InstanceGraph, levels=dict(s16="s16"), edges=3000.0, change=3000.0),
    align=None,
    transform=None,
)

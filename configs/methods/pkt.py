"""Probabilistic knowledge transfer: similarities between the images of a batch, as probabilities.

Source       Passalis and Tefas, ECCV 2018; weight of RepDistiller.
Differs      from `similarity` in the loss: the KL divergence between cosine similarities that are
             normalised to probabilities per image.
Cost         O(B^2 D) per batch.
"""

from kdep_bench.objectives.pkt import PKT

method = dict(
    name="pkt",
    family="relation",
    labels_used=False,
    needs=["pooled"],
    source="Passalis and Tefas, ECCV 2018; HobbitLong/RepDistiller distiller_zoo/PKT.py",
    objective=dict(type=PKT, weight=30000.0),
    align=None,
    transform=None,
)

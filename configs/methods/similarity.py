"""Similarity-preserving KD: the row-normalised Gram matrix of a batch, label-free.

Source       Tung and Mori, ICCV 2019; weight of RepDistiller, where the last maps are flattened:
             here they are pooled, as for every method.
Differs      from `kdep` in the objective: no alignment, no target per image, no projector.
Cost         O(B^2 D) per batch.
"""

from kdep_bench.objectives.similarity_preserving import SimilarityPreserving

method = dict(
    name="similarity",
    family="relation",
    labels_used=False,
    needs=["pooled"],
    source="Tung and Mori, ICCV 2019; HobbitLong/RepDistiller distiller_zoo/SP.py",
    objective=dict(type=SimilarityPreserving, weight=3000.0),
    align=None,
    transform=None,
)

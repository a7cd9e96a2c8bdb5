"""Similarity-preserving KD: the row-normalised Gram matrix of a batch, label-free.

Source       Tung and Mori, ICCV 2019; weight of RepDistiller. The last maps are pooled here;
             RepDistiller flattens them.
Differs      from `kdep` in the objective, which compares pairs of images; there is no alignment.
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

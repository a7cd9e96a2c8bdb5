"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdep_bench.bounds import Counts, Positive
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, top1, unit

ROWS = 1024  # queries per matrix product, which limits memory


def votes(bank: Features, queries: Features, ks: Sequence[int], T: float) -> dict[int, np.ndarray]:
    """Votes of the nearest neighbours for each class, for several numbers of neighbours.

    Args:
        bank: labelled features among which neighbours are found.
        queries: features of N images.
        ks: numbers of neighbours.
        T: temperature.

    Returns:
        {k: [N, classes]}: for every class, the sum of exp((cosine - 1) / T) over those of the k
        nearest images that have this class. Images at equal distance are in the order of the bank.
    """
    bank_features = unit(bank.post_activation)
    n_classes = len(bank.classes) or int(bank.labels.max()) + 1
    votes_by_k = {k: np.zeros((len(queries), n_classes)) for k in ks}
    for start in range(0, len(queries), ROWS):
        cosine = unit(queries.post_activation[start : start + ROWS]) @ bank_features.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, : max(ks)]
        # Subtracting 1 avoids overflow and changes no comparison of classes.
        weight = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / T)
        labels = bank.labels[nearest]
        for k, votes_of_k in votes_by_k.items():
            for c in range(n_classes):
                weight_of_class = weight * (labels == c)
                votes_of_k[start : start + ROWS, c] = weight_of_class[:, :k].sum(1)
    return votes_by_k


class Knn(Probe):
    """Top-1 accuracy of weighted k-nearest-neighbour classification by cosine similarity.

    It compares features after the last activation. Neighbours are images of the training split,
    with weights exp(cosine / T). k is chosen on the validation split; if several values are equally
    good, the smallest is chosen. Source: Wu et al., CVPR 2018, section 3.4 (T = 0.07).

    Args:
        k: numbers of neighbours to choose from.
        T: temperature of the weights.
    """

    reads = frozenset({"classes"})
    splits = ("train", "val", "test")

    def __init__(self, k: Counts = (1, 5, 10, 20, 50), T: Positive = 0.07) -> None:
        self.k, self.T = sorted(k), float(T)

    def measure(self, data: Inputs) -> Measured:
        bank, val, test = (data.splits[s] for s in self.splits)
        ks = [k for k in self.k if k <= len(bank)] or [len(bank)]
        scores = {
            k: float((votes_of_k.argmax(1) == val.labels).mean())
            for k, votes_of_k in votes(bank, val, ks, self.T).items()
        }
        k = max(ks, key=lambda n: (scores[n], -n))
        predicted = votes(bank, test, [k], self.T)[k].argmax(1)
        note = f"k = {k} chosen on val ({scores[k]:.4f})"
        return Measured({"top1": top1(test.labels, predicted)}, (note,))

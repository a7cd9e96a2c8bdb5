"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdep_bench.bounds import Counts, Positive
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, top1, unit

ROWS = 1024  # queries at once


def votes(bank: Features, queries: Features, ks: Sequence[int], T: float) -> dict[int, np.ndarray]:
    """k -> [N, classes]: the sum of exp(cosine / T) over the k nearest of `bank`, by class.

    Equally near images of the bank count in the order of the bank.
    """
    x, number = unit(bank.after), len(bank.classes) or int(bank.labels.max()) + 1
    per_k = {k: np.zeros((len(queries), number)) for k in ks}
    for start in range(0, len(queries), ROWS):
        cosine = unit(queries.after[start : start + ROWS]) @ x.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, : max(ks)]
        weight = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / T)  # - 1: no overflow
        labels = bank.labels[nearest]
        for k, out in per_k.items():
            for c in range(number):
                out[start : start + ROWS, c] = (weight * (labels == c))[:, :k].sum(1)
    return per_k


class Knn(Probe):
    """Top-1 accuracy of the class with the largest sum of exp(cosine / T) over the k nearest.

    The bank is the training split; `k` is chosen on the validation split, the smallest of equally
    good ones. Source: Wu et al., CVPR 2018, section 3.4 (T = 0.07).

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
            k: float((v.argmax(1) == val.labels).mean())
            for k, v in votes(bank, val, ks, self.T).items()
        }
        k = max(ks, key=lambda n: (scores[n], -n))
        predicted = votes(bank, test, [k], self.T)[k].argmax(1)
        note = f"k = {k} chosen on val ({scores[k]:.4f})"
        return Measured({"top1": top1(test.labels, predicted)}, (note,))

"""Retrieval among the test images: mean average precision, recall at K."""

from __future__ import annotations

import numpy as np

from kdep_bench.bounds import Counts
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value, unit


def average_precision(score_N: np.ndarray, relevant_N: np.ndarray) -> float:
    """Area under precision over recall, without interpolation; equal scores enter at once.

    Equal to scikit-learn's `average_precision_score`: features that are all alike give the fraction
    of relevant images, whatever order the images are stored in. At least one must be relevant.
    """
    order = np.argsort(-score_N, kind="stable")
    score, hit = score_N[order], relevant_N[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of each group of equals
    hits = np.cumsum(hit)[last]
    precision = hits / (last + 1)
    return float((precision * np.diff(hits, prepend=0)).sum() / hits[-1])


class Retrieval(Probe):
    """Every test image is a query for the other test images, ranked by cosine similarity.

    Relevant are the images of the query's class. `mAP`: mean over queries of
    `average_precision`. `recall at K`: fraction of queries with a relevant image among the K most
    similar (Jegou et al., TPAMI 2011, as metric learning uses it); equally similar images are
    ordered at random, by a fixed seed.

    Args:
        ranks: values of K.
    """

    reads = frozenset({"classes"})
    splits = ("test",)

    def __init__(self, ranks: Counts = (1, 5, 10)) -> None:
        self.ranks = sorted(ranks)

    def measure(self, data: Inputs) -> Measured:
        test = data.splits["test"]
        counts = np.bincount(test.labels)
        if counts[counts > 0].min() < 2:
            raise KdepError(
                "retrieval needs two test images of every class, but a class has one",
                fix="add images of that class to the test split, or remove the probe",
            )
        shuffled = np.random.default_rng(0).permutation(len(test))
        x, y = unit(test.after)[shuffled], test.labels[shuffled]
        precisions, hits = [], dict.fromkeys(self.ranks, 0)
        for i in range(len(x)):
            gallery = np.arange(len(x)) != i
            cosine, same = (x @ x[i])[gallery], (y == y[i])[gallery]
            precisions.append(average_precision(cosine, same))
            nearest = np.argsort(-cosine, kind="stable")[: self.ranks[-1]]
            for k in self.ranks:
                hits[k] += bool(same[nearest[:k]].any())
        relevant = (counts * (counts - 1.0)).sum() / (len(test) * (len(test) - 1.0))
        values = {"mAP": Value(float(np.mean(precisions)), "larger", True, float(relevant))}
        for k in self.ranks:
            chance = float(relevant) if k == 1 else None
            values[f"recall at {k}"] = Value(hits[k] / len(x), "larger", True, chance)
        return Measured(values)

"""Image retrieval among the test images: mean average precision and recall at K."""

from __future__ import annotations

import numpy as np

from kdep_bench.bounds import Counts
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value, unit


def average_precision(score_N: np.ndarray, relevant_N: np.ndarray) -> float:
    """Area under the precision-recall curve, without interpolation.

    Images with equal scores have the same rank, so the result does not depend on their order.
    Equal to scikit-learn's `average_precision_score`.

    Args:
        score_N: scores, largest first in the ranking.
        relevant_N: whether each image is relevant; at least one must be.
    """
    order = np.argsort(-score_N, kind="stable")
    score, relevant = score_N[order], relevant_N[order]
    # Index of the last image in each group of equal scores.
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    hits = np.cumsum(relevant)[last]
    precision = hits / (last + 1)
    return float((precision * np.diff(hits, prepend=0)).sum() / hits[-1])


class Retrieval(Probe):
    """Every test image is a query; the other test images are ranked by cosine similarity.

    It compares features after the last activation. The relevant images are those of the query's
    class. `mAP`: mean of `average_precision` over all queries. `recall at K`: fraction of queries
    with a relevant image among the K most similar, as usual in metric learning (Jegou et al., TPAMI
    2011); images of equal similarity are then in a random order, with a fixed seed.

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
                fix="add images of that class to the test split, or remove the probe from the "
                "suite",
            )
        shuffled = np.random.default_rng(0).permutation(len(test))
        x, y = unit(test.post_activation)[shuffled], test.labels[shuffled]
        precisions, hits = [], dict.fromkeys(self.ranks, 0)
        for i in range(len(x)):
            is_other = np.arange(len(x)) != i
            cosine, relevant = (x @ x[i])[is_other], (y == y[i])[is_other]
            precisions.append(average_precision(cosine, relevant))
            nearest = np.argsort(-cosine, kind="stable")[: self.ranks[-1]]
            for k in self.ranks:
                hits[k] += bool(relevant[nearest[:k]].any())
        # Mean fraction of relevant images: the expected precision of a random ranking.
        relevant_fraction = (counts * (counts - 1.0)).sum() / (len(test) * (len(test) - 1.0))
        chance_map = float(relevant_fraction)
        values = {
            "mAP": Value(float(np.mean(precisions)), "larger", percent=True, chance=chance_map)
        }
        for k in self.ranks:
            chance = chance_map if k == 1 else None
            values[f"recall at {k}"] = Value(
                hits[k] / len(x), "larger", percent=True, chance=chance
            )
        return Measured(values)

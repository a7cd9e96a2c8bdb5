"""Accuracy on images of another domain than the one that the classifiers were fitted on."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from kdep_bench.bounds import Count, Counts, Domains, Positive, Positives
from kdep_bench.data.domains import DOMAINS, to_domain
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, Value, top1
from kdep_bench.probes.knn import votes
from kdep_bench.probes.linear import fit

SOURCE = "source"  # the images as they are


class OtherDomain(Probe):
    """Top-1 accuracy of a linear probe and of k nearest neighbours in generated target domains.

    Both classifiers are fitted on the source images of the training split, and C and k are chosen
    on the source images of the validation split, so nothing is fitted to a target domain. Every
    domain has the same test images: in fog, at night or as drawings (`kdep_bench.data.domains`).
    The changed images are the same for every backbone.

    `top1, D, linear` and `top1, D, kNN`: accuracy in the domain D, where `source` is the images as
    they are. `top1, mean of targets, linear` (or kNN): mean over the target domains.

    Args:
        domains: names of `domains.DOMAINS`.
        c_grid: values of C to choose from.
        max_iter: largest number of iterations of the solver.
        k: numbers of neighbours to choose from.
        T: temperature of the weights of the neighbours.
    """

    reads = frozenset({"classes", "backbone"})
    splits = ("train", "val", "test")

    def __init__(
        self,
        domains: Domains,
        c_grid: Positives = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iter: Count = 500,
        k: Counts = (1, 5, 10, 20, 50),
        T: Positive = 0.07,
    ) -> None:
        self.domains = [name for name in DOMAINS if name in set(domains)]
        self.c_grid, self.max_iter = list(c_grid), int(max_iter)
        self.k, self.T = sorted(k), float(T)

    def measure(self, data: Inputs) -> Measured:
        train, val, test = (data.splits[s] for s in self.splits)
        linear = fit(train, val, self.c_grid, self.max_iter)
        k, k_note = self._neighbours(train, val)
        values: dict[str, Value] = {}
        targets: dict[str, list[Value]] = defaultdict(list)
        features = {SOURCE: test.post_activation, **self._target_features(data, test)}
        for domain, after in features.items():
            queries = Features(after, after, test.labels, test.classes)
            predicted = {
                "linear": linear.model.predict(after.astype(np.float64)),
                "kNN": votes(train, queries, [k], self.T)[k].argmax(1),
            }
            for classifier, classes in predicted.items():
                value = values[f"top1, {domain}, {classifier}"] = top1(test.labels, classes)
                if domain != SOURCE:
                    targets[classifier].append(value)
        for classifier, scores in targets.items():
            mean = float(np.mean([score.value for score in scores]))
            values[f"top1, mean of targets, {classifier}"] = Value(
                mean, "larger", True, scores[0].chance
            )
        return Measured(values, (linear.note, k_note))

    def _neighbours(self, train: Features, val: Features) -> tuple[int, str]:
        """(k, a note): the number of neighbours with the best accuracy on `val`, as probe `knn`."""
        ks = [k for k in self.k if k <= len(train)] or [len(train)]
        scores = {
            k: float((votes_of_k.argmax(1) == val.labels).mean())
            for k, votes_of_k in votes(train, val, ks, self.T).items()
        }
        best = max(ks, key=lambda k: (scores[k], -k))
        return best, f"k = {best} chosen on val ({scores[best]:.4f})"

    def _target_features(self, data: Inputs, test: Features) -> dict[str, np.ndarray]:
        """{domain: [N, D] features of the test images in this domain}."""
        assert data.images is not None
        assert data.extract is not None
        parts: dict[str, list[np.ndarray]] = defaultdict(list)
        start = 0
        for batch in data.images("test"):
            for domain in self.domains:
                copies = [to_domain(x, domain, [start + i]) for i, x in enumerate(batch)]
                parts[domain].append(data.extract(np.stack(copies))[1])
            start += len(batch)
            data.progress(start, len(test), "images of other domains")
        if start != len(test):
            raise KdepError(
                f"the test split has {start} images now, but its features are of {len(test)}",
                fix="run the suite again with --force features",
            )
        return {domain: np.concatenate(parts[domain]) for domain in self.domains}

"""Calibration of a linear classifier: whether its probabilities agree with its accuracy."""

from __future__ import annotations

import numpy as np

from kdep_bench.bounds import Count, Positives
from kdep_bench.probes.base import Inputs, Measured, Probe, Value, top1
from kdep_bench.probes.linear import fit


def binned_error(predicted_N: np.ndarray, true_N: np.ndarray, bins: int) -> float:
    """Sum over bins of (fraction of samples) * |mean probability - fraction of true outcomes|.

    Args:
        predicted_N: probabilities.
        true_N: whether the outcome is true, 0 or 1.
        bins: number of bins of equal width, (0, 1/bins], (1/bins, 2/bins], ...; 0 is in the first.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.clip(np.digitize(predicted_N, edges, right=True) - 1, 0, bins - 1)
    gap = np.bincount(bin_N, predicted_N, bins) - np.bincount(bin_N, true_N, bins)
    return float(np.abs(gap).sum() / len(predicted_N))


def calibration_error(p_NC: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Expected calibration error of the top class (Guo et al., ICML 2017)."""
    return binned_error(p_NC.max(1), (p_NC.argmax(1) == labels).astype(float), bins)


def classwise_error(p_NC: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Mean of `binned_error` over the probabilities of the classes (Kull et al., NeurIPS 2019)."""
    classes = p_NC.shape[1]
    return float(
        np.mean([binned_error(p_NC[:, c], (labels == c) * 1.0, bins) for c in range(classes)])
    )


class Calibration(Probe):
    """Calibration of the linear probe on the test split; no temperature is fitted.

    `ECE`: expected calibration error of the predicted class. `classwise ECE`: mean of this error
    over all classes, for their probabilities. `Brier`: sum over classes of
    (probability - truth)^2, mean over images, from 0 to 2. `NLL`: mean of -log(probability of the
    true class), in nats. `top1`: accuracy of the same classifier.

    Args:
        c_grid: values of C, the inverse strength of the regularisation, to choose from by accuracy
            on the validation split.
        max_iter: largest number of iterations of the solver.
        bins: number of bins of the two calibration errors.
    """

    reads = frozenset({"classes"})
    splits = ("train", "val", "test")

    def __init__(
        self,
        c_grid: Positives = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iter: Count = 500,
        bins: Count = 15,
    ) -> None:
        self.c_grid, self.max_iter, self.bins = list(c_grid), int(max_iter), int(bins)

    def measure(self, data: Inputs) -> Measured:
        from sklearn.metrics import log_loss

        train, val, test = (data.splits[s] for s in self.splits)
        linear = fit(train, val, self.c_grid, self.max_iter)
        classes = linear.model.classes_
        p_NC = np.zeros((len(test), int(max(classes.max(), test.labels.max())) + 1))
        p_NC[:, classes] = linear.model.predict_proba(test.post_activation.astype(np.float64))
        truth = np.eye(p_NC.shape[1])[test.labels]
        values = {
            "ECE": Value(calibration_error(p_NC, test.labels, self.bins), "smaller", True),
            "classwise ECE": Value(classwise_error(p_NC, test.labels, self.bins), "smaller", True),
            "Brier": Value(float(((p_NC - truth) ** 2).sum(1).mean()), "smaller"),
            "NLL": Value(
                float(log_loss(test.labels, p_NC, labels=np.arange(p_NC.shape[1]))), "smaller"
            ),
            "top1": top1(test.labels, p_NC.argmax(1)),
        }
        return Measured(values, (linear.note,))

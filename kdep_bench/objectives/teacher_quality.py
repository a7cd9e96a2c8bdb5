"""Chooses the best of several teachers by the quality of a short distillation from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from kdep_bench.bounds import BelowOne, Fraction, Positive
from kdep_bench.objectives.held_out import HeldOutOutputs, TeacherWeights
from kdep_bench.objectives.roles import PROXY_SUFFIX, candidates
from kdep_bench.objectives.weighted_assistants import (
    EPSILON,
    WeightedAssistantsWithLabels,
    softmax,
)


class BestTeacher(WeightedAssistantsWithLabels):
    """(1 - alpha) CE(y, student) + alpha tau^2 KL_tau(best teacher || student), on one head.

    In the method's config, the candidates have one architecture and were trained with different
    batch sizes and numbers of epochs. For each candidate `a` the method has a second teacher,
    `a_proxy`: a small student after a short distillation from `a`. The proxy's top-1 accuracy on
    held-out images is the quality of `a`; ties are decided by the proxy's cross-entropy. The best
    candidate is chosen once, before training; the other teachers have no influence on the loss.

    Source: re-implementation from the abstract of Vats and Crandall (arXiv 2112.10047): the more
    information on similarity the teacher's outputs have, the better is the distillation. Long
    training removes it; the teacher's batch size and epochs control it. Chosen in this
    project: the short distillation as the measure of quality, the held-out images, and
    `similarity_information`, the measure of similarity information. The outputs of the pre-training
    stage contain this measure for every candidate, and its rank correlation with the quality.

    Args:
        held_out: fraction of the images on which the candidates are compared. No candidate and no
            proxy must be trained on these images.
        tau: temperature of the KL and of the similarity information.
        alpha: weight of the distillation term, 0 to 1; 0.9 as in LogitKDWithLabels.
        width, teachers, teacher_weights, classes: set by the pre-training stage.
    """

    compares_candidates = True

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        teacher_weights: Mapping[str, float],
        classes: int,
        held_out: BelowOne,
        tau: Positive = 4.0,
        alpha: Fraction = 0.9,
    ) -> None:
        super().__init__(width, teachers, teacher_weights, classes, held_out, tau=tau, alpha=alpha)

    @classmethod
    def weigh_teachers(cls, config: Mapping[str, Any], held_out: HeldOutOutputs) -> TeacherWeights:
        """Weight 1 for the best candidate, 0 for all other teachers."""
        labels, tau = held_out.labels, config.get("tau", 4.0)
        assert labels is not None
        measured: dict[str, dict[str, float]] = {}
        for role in candidates(list(held_out.logits)):
            teacher, proxy = held_out.logits[role], held_out.logits[role + PROXY_SUFFIX]
            information = similarity_information(teacher, labels, tau)
            measured[role] = {
                "quality": accuracy(proxy, labels),
                "cross_entropy": label_cross_entropy(proxy, labels),
                "teacher_accuracy": accuracy(teacher, labels),
                "similarity_information": information,
                "effective_classes": float(np.exp(information)),
            }
        best = max(
            measured,
            key=lambda role: (measured[role]["quality"], -measured[role]["cross_entropy"]),
        )
        correlations = {
            f"spearman_{name}": rank_correlation(
                [m[name] for m in measured.values()], [m["quality"] for m in measured.values()]
            )
            for name in ("similarity_information", "teacher_accuracy")
        }
        listed = ", ".join(
            f"{role} {100 * m['quality']:.1f} % (similarity information "
            f"{m['similarity_information']:.2f} nats)"
            for role, m in measured.items()
        )
        return TeacherWeights(
            {role: float(role == best) for role in held_out.logits},
            {
                "weights": {role: float(role == best) for role in measured},
                "chosen": best,
                "candidates": measured,
                **correlations,
                "images": held_out.images,
                "samples": len(labels),
            },
            f"the teacher is {best}, chosen on {held_out.images:,} held-out images by the top-1 "
            f"accuracy of a short distillation from each candidate: {listed}",
        )


# ---- measures of a teacher's outputs ----


def similarity_information(z_NC: np.ndarray, left_out_N: np.ndarray, tau: float = 1.0) -> float:
    """Mean entropy, in nats, of softmax(z / tau) over all classes but one, renormalised.

    It is 0 for one-hot probabilities (of which nothing is left without that class) and log(C - 1)
    if all other classes are equally probable. Its exponential is the effective number of classes.

    Args:
        z_NC: logits.
        left_out_N: the class of each sample that is left out, here its label.
        tau: temperature.
    """
    p_NC = softmax(z_NC, tau)
    np.put_along_axis(p_NC, left_out_N[:, None], 0.0, 1)
    rest_N1 = p_NC.sum(1, keepdims=True)
    q_NC = np.divide(p_NC, rest_N1, out=np.zeros_like(p_NC), where=rest_N1 > 0)
    return float(-(q_NC * np.log(q_NC + EPSILON)).sum(1).mean())


def accuracy(z_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Top-1 accuracy, 0 to 1."""
    return float((z_NC.argmax(1) == labels_N).mean())


def label_cross_entropy(z_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean cross-entropy with the labels, in nats."""
    p_N = softmax(z_NC)[np.arange(len(labels_N)), labels_N]
    return float(-np.log(p_N + EPSILON).mean())


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs or a constant list."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(cast(Any, spearmanr(a, b)).statistic)

"""An ensemble of assistants, with weights found by differential evolution on held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import BelowOne, Fraction, Positive
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.held_out import HeldOutOutputs, TeacherWeights, check_fraction
from kdep_bench.objectives.multi_teacher import check_labels, common_classes

GENERATIONS = 60  # maximum number of generations of differential evolution
# Maximum number of samples on which WeightedAssistants compares distributions over all classes.
MAX_SAMPLES = 1024
EPSILON = 1e-300  # added to a probability before its logarithm


class WeightedAssistants(Objective):
    """tau^2 KL(p || p_s): p = sum over assistants k of w_k softmax(z_k / tau).

    p_s is the softmax of the student's logits / tau. The weights w (not negative, sum 1) are found
    once, before training, by differential evolution on held-out images: they minimise the mean
    cross-entropy of p with softmax(z / tau) of the teacher `reference`, which is not in the
    ensemble. They are the same in every step. The held-out images are held out from the assistants'
    training only; the student is trained on all images. With one assistant the loss is that of
    TAKD.

    Source: re-implementation from the abstract of Ganta, Das Gupta, Sheng (arXiv 2206.12005), which
    states that the weights of several assistants are found by differential evolution. The function
    that is minimised, which reads no labels, and `floor` were chosen in this project. Differential
    evolution has SciPy's defaults, except for a tolerance of 1e-9 (SciPy's default of 1 % stops it
    in the first generation, because the cross-entropy varies by less) and at most 60 generations.
    Its first population includes equal weights, so the result is never worse than these on the
    samples that are compared. If one assistant is the best for all images, all weight is on it;
    `floor` prevents that. The student's linear head is dropped at export.

    Args:
        held_out: fraction of the images on which the weights are found. The assistants must not be
            trained on these images.
        reference: role of the large teacher.
        tau: temperature.
        floor: fraction of the weight that is spread evenly; w_k is at least floor / K.
        seed: random seed of differential evolution.
        width, teachers, teacher_weights: set by the pre-training stage.

    `weigh_teachers` reads `reference`, `floor` and `seed` from the config.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes", "teacher_weights"})
    every_teacher = True  # the argument `teachers` replaces teacher_classes
    weights: Tensor

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        teacher_weights: Mapping[str, float],
        held_out: BelowOne,
        reference: str,
        tau: Positive = 4.0,
        floor: Fraction = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_fraction(held_out, "the ensemble of assistants")
        self.head = nn.Linear(width, common_classes(teachers))
        self.roles = [role for role, weight in teacher_weights.items() if weight > 0]
        weights = torch.tensor([teacher_weights[role] for role in self.roles])
        self.register_buffer("weights", weights)
        self.tau = float(tau)

    @classmethod
    def weigh_teachers(cls, config: Mapping[str, Any], held_out: HeldOutOutputs) -> TeacherWeights:
        """The weights of the assistants; the reference has the weight 0.

        `config`: config of the objective.
        """
        tau, reference = config.get("tau", 4.0), config["reference"]
        step = math.ceil(len(next(iter(held_out.logits.values()))) / MAX_SAMPLES)
        logits = {role: z[::step] for role, z in held_out.logits.items()}
        if reference not in logits:
            raise unknown_name("role", reference, logits, place="`reference` of the objective")
        target_NC = softmax(logits.pop(reference), tau)
        p_KNC = np.stack([softmax(z, tau) for z in logits.values()])
        chosen = _search(p_KNC, target_NC, list(logits), held_out.images, config)
        return TeacherWeights({**chosen.weights, reference: 0.0}, chosen.report, chosen.note)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {"kl": self.kl(ctx, self.head(ctx.post_activation))}

    def kl(self, ctx: Context, student_BC: Tensor) -> Tensor:
        """[B]: tau^2 KL of the ensemble's and the student's probabilities at temperature tau."""
        logits = [ctx.teachers[role].logits for role in self.roles]
        assert all(z is not None for z in logits)
        log_p_KBC = F.log_softmax(torch.stack([z for z in logits if z is not None]) / self.tau, 2)
        log_p_BC = torch.logsumexp(log_p_KBC + self.weights.to(log_p_KBC).log()[:, None, None], 0)
        log_s_BC = F.log_softmax(student_BC / self.tau, 1)
        return self.tau**2 * (log_p_BC.exp() * (log_p_BC - log_s_BC)).sum(1)


class WeightedAssistantsWithLabels(WeightedAssistants):
    """(1 - alpha) CE(y, student) + alpha * (the KL of WeightedAssistants), on one head.

    The weights minimise the mean cross-entropy of the ensemble, at temperature 1, with the labels
    of the held-out images. All teachers are in the ensemble: there is no `reference`. The labels
    must be the classes of the teachers' classifiers.

    Args:
        held_out: fraction of the images on which the weights are found. The assistants must not be
            trained on these images.
        tau: temperature of the KL.
        alpha: weight of the distillation term, 0 to 1; 0.9 as in LogitKDWithLabels.
        floor: fraction of the weight that is spread evenly; w_k is at least floor / K.
        seed: random seed of differential evolution.
        width, teachers, teacher_weights, classes: set by the pre-training stage.
    """

    needs = frozenset({"logits", "labels", "classes"})
    stage_arguments = WeightedAssistants.stage_arguments | {"classes"}

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        teacher_weights: Mapping[str, float],
        classes: int,
        held_out: BelowOne,
        tau: Positive = 4.0,
        alpha: Fraction = 0.9,
        floor: Fraction = 0.0,
        seed: int = 0,
    ) -> None:
        check_labels(classes, teachers)
        super().__init__(width, teachers, teacher_weights, held_out, reference="", tau=tau)
        self.alpha = float(alpha)

    @classmethod
    def weigh_teachers(cls, config: Mapping[str, Any], held_out: HeldOutOutputs) -> TeacherWeights:
        p_KNC = np.stack([softmax(z) for z in held_out.logits.values()])
        assert held_out.labels is not None
        # The target is one-hot, so only the probability of the label is compared.
        p_KN1 = p_KNC[:, np.arange(p_KNC.shape[1]), held_out.labels, None]
        target_N1 = np.ones((p_KNC.shape[1], 1))
        return _search(p_KN1, target_N1, list(held_out.logits), held_out.images, config)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        student = self.head(ctx.post_activation)
        cross_entropy = F.cross_entropy(student, ctx.labels, reduction="none")
        return {
            "cross_entropy": (1 - self.alpha) * cross_entropy,
            "kl": self.alpha * self.kl(ctx, student),
        }


# ---- the search ----


def softmax(z_NC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """[N, C]: the softmax of logits / tau."""
    e = np.exp((z_NC - z_NC.max(1, keepdims=True)) / tau)
    return e / e.sum(1, keepdims=True)


def cross_entropy(weights_K: np.ndarray, p_KNC: np.ndarray, target_NC: np.ndarray) -> float:
    """Mean over samples of -sum over c of target_c log(sum over k of w_k p_kc)."""
    p_NC = np.tensordot(weights_K, p_KNC, 1)
    return float(-(target_NC * np.log(p_NC + EPSILON)).sum(1).mean())


def evolve_weights(
    loss: Callable[[np.ndarray], float], count: int, floor: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Weights [K], not negative with sum 1, that minimise a function, by differential evolution.

    Each member of the population is a point of the unit cube; divided by the sum of its
    coordinates, it gives the weights.

    Args:
        loss: the function of the weights.
        count: K.
        floor: fraction of the weight that is spread evenly.
        seed: random seed.
    """
    from scipy.optimize import differential_evolution

    def weights(v_K: np.ndarray) -> np.ndarray:
        v_K = np.maximum(v_K, 0)
        simplex_K = v_K / v_K.sum() if v_K.sum() > 0 else np.full(count, 1 / count)
        return (1 - floor) * simplex_K + floor / count

    if count == 1:
        return np.ones(1)
    result = differential_evolution(
        lambda v: loss(weights(v)),
        [(0.0, 1.0)] * count,
        x0=np.ones(count),
        maxiter=GENERATIONS,
        tol=1e-9,
        polish=False,
        rng=seed,
    )
    return weights(result.x)


def _search(
    p_KNC: np.ndarray,
    target_NC: np.ndarray,
    roles: list[str],
    images: int,
    config: Mapping[str, Any],
) -> TeacherWeights:
    """The weights that minimise `cross_entropy`, with the numbers that describe them."""
    if not np.isfinite(p_KNC).all():
        raise KdepError(
            "an assistant's logits are not finite on the held-out images",
            fix="lower the learning rate of its pre-training",
        )
    count = len(roles)

    def loss(weights_K: np.ndarray) -> float:
        return cross_entropy(weights_K, p_KNC, target_NC)

    weights = evolve_weights(loss, count, config.get("floor", 0.0), config.get("seed", 0))
    entropy = float(-(weights * np.log(weights + EPSILON)).sum())
    best, equal = loss(weights), loss(np.full(count, 1 / count))
    by_role = {role: float(w) for role, w in zip(roles, weights, strict=True)}
    report = {
        "weights": by_role,
        "entropy": entropy,
        "loss": best,
        "loss_equal_weights": equal,
        "loss_single": {role: loss(w) for role, w in zip(roles, np.eye(count), strict=True)},
        "images": images,
        "samples": p_KNC.shape[1],
    }
    listed = ", ".join(f"{role} {w:.3f}" for role, w in by_role.items())
    note = (
        f"weights of the assistants, from {images:,} held-out images: {listed} (cross-entropy "
        f"{best:.4f}, with equal weights {equal:.4f}; entropy of the weights {entropy:.2f} of "
        f"{math.log(count):.2f} nats)"
    )
    return TeacherWeights(by_role, report, note)

"""BD-KD: its formula in float64, its special cases, and the settings that the plan refuses.

BD-KD (balanced divergences) trains a student and its teacher, here called the peer, at the same
time. The formula and its weights delta, a, b, c are in the docstring of `BalancedDivergences`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.bd_kd import BalancedDivergences
from kdep_bench.objectives.logit_kd import LogitKD
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.teachers.base import TeacherOutput
from tests.objectives import tiny
from tests.suite.test_suite_methods import plan

B, C = 7, 4  # images per batch, classes


class FixedFeature(nn.Module):
    """A peer network that ignores the images and returns a parameter as its feature."""

    def __init__(self, feature_BD: Tensor) -> None:
        super().__init__()
        self.feature = nn.Parameter(feature_BD)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features before and after the last activation; only the second is read."""
        return -self.feature, self.feature


def build(**arguments: Any) -> tuple[BalancedDivergences, Context]:
    """The objective in float64 and a batch; features have 3 (student) and 5 (peer) channels."""
    torch.manual_seed(0)
    objective = BalancedDivergences(3, C, peer={"width": 5}, **arguments).double()
    # The peer's logits are small (low confidence) and large (high confidence) in turn.
    scale = torch.tensor([0.2, 4.0]).repeat(B)[:B, None]
    peer = FixedFeature(scale * torch.randn(B, 5, dtype=torch.float64))
    objective.attach(nn.Identity(), lambda config: peer)
    after = 2 * torch.randn(B, 3, dtype=torch.float64)
    after.requires_grad_()
    labels = torch.arange(B) % C
    return objective, Context(after, after, labels=labels, images=torch.zeros(B, 3, 2, 2))


def logits(objective: BalancedDivergences, ctx: Context) -> tuple[np.ndarray, np.ndarray]:
    """Logits of student and peer, [B, C] float64 each."""
    peer = objective.peer.get_parameter("feature")
    return tuple(
        z.detach().numpy() for z in (objective.head(ctx.post_activation), objective.peer_head(peer))
    )  # type: ignore[return-value]


def softmax(logits_BC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """Probabilities [B, C] at temperature tau."""
    exponentials = np.exp(logits_BC / tau)
    return exponentials / exponentials.sum(1, keepdims=True)


def kl(p_BC: np.ndarray, q_BC: np.ndarray) -> np.ndarray:
    """KL(p || q) of each sample, [B]."""
    return (p_BC * np.log(p_BC / q_BC)).sum(1)


def as_arrays(terms: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The terms [B] as arrays."""
    return {k: v.detach().numpy() for k, v in terms.items()}


def test_every_term_equals_the_formula_in_float64():
    delta, a, b, c, tau = 3.0, 0.7, 1.3, 0.4, 2.0
    objective, ctx = build(
        delta=delta, forward_weight=a, reverse_weight=b, teacher_weight=c, tau=tau
    )
    student, peer = logits(objective, ctx)
    p_s, p_t = softmax(student, tau), softmax(peer, tau)
    # Lower entropy: the student is more confident than the peer.
    student_is_confident = -(p_t * np.log(p_t)).sum(1) > -(p_s * np.log(p_s)).sum(1)
    assert 0 < student_is_confident.sum() < B  # both cases occur
    at_label = np.arange(B), np.arange(B) % C
    expected = {
        "cross_entropy": -np.log(softmax(student)[at_label]),
        "forward": a * np.where(student_is_confident, delta, 1) * tau**2 * kl(p_t, p_s),
        "reverse": b * np.where(student_is_confident, 1, delta) * tau**2 * kl(p_s, p_t),
        "peer_cross_entropy": -np.log(softmax(peer)[at_label]),
        "peer_kl": c * tau**2 * kl(p_s, p_t),
    }
    computed = as_arrays(objective.terms(ctx))
    assert computed.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(computed[name], values, rtol=1e-6, err_msg=name)


def test_the_forward_direction_has_the_larger_weight_if_the_student_is_more_confident():
    """Forward: KL(peer || student); reverse: KL(student || peer). The larger weight is delta."""
    objective, _ = build(delta=5.0)
    confident, unconfident = torch.tensor([[4.0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]])
    confident_student = objective.emphasis(confident, unconfident)
    assert (confident_student["forward"].item(), confident_student["reverse"].item()) == (5.0, 1.0)
    confident_peer = objective.emphasis(unconfident, confident)
    assert (confident_peer["forward"].item(), confident_peer["reverse"].item()) == (1.0, 5.0)


def test_with_delta_1_the_student_s_divergence_is_symmetric():
    objective, ctx = build(delta=1.0)
    terms = as_arrays(objective.terms(ctx))
    p_s, p_t = (softmax(z) for z in logits(objective, ctx))
    # Jeffreys' divergence KL(p_t || p_s) + KL(p_s || p_t).
    jeffreys = ((p_t - p_s) * (np.log(p_t) - np.log(p_s))).sum(1)
    np.testing.assert_allclose(terms["forward"] + terms["reverse"], jeffreys, rtol=1e-6)


def test_without_the_reverse_direction_the_student_s_loss_is_logit_distillation():
    objective, ctx = build(delta=1.0, reverse_weight=0.0, tau=4.0)
    terms = objective.terms(ctx)
    peer = torch.tensor(logits(objective, ctx)[1])
    kd = LogitKD(3, C, tau=4.0).double()
    kd.head.load_state_dict(objective.head.state_dict())
    expected = kd.terms(
        Context(ctx.post_activation, ctx.post_activation, teacher=TeacherOutput(peer, peer))
    )
    student_terms = terms["forward"] + terms["reverse"]
    torch.testing.assert_close(student_terms, expected["kl"])
    gradients = [
        torch.autograd.grad(term.sum(), ctx.post_activation)[0]
        for term in (student_terms, expected["kl"])
    ]
    torch.testing.assert_close(*gradients)


def test_terms_named_peer_train_only_the_peer_and_the_others_only_the_student():
    objective, ctx = build()
    terms = objective.terms(ctx)
    features = {"student": ctx.post_activation, "peer": objective.peer.get_parameter("feature")}
    for name, term in terms.items():
        trained = "peer" if name.startswith("peer") else "student"
        for network, feature in features.items():
            (gradient,) = torch.autograd.grad(
                term.sum(), feature, retain_graph=True, allow_unused=True
            )
            has_gradient = gradient is not None and bool(gradient.any())
            assert has_gradient == (network == trained), name


def test_a_peer_with_another_input_size_is_refused_and_the_stated_fix_works():
    wrong: dict[str, Any] = dict(base="bd_kd", objective=dict(peer=dict(input_px=96)))
    with pytest.raises(KdepError, match=r"'resnet18_w48', whose input has 96 pixels.*64") as raised:
        plan(wrong)
    assert "objective=dict(peer=dict(input_px=64))" in str(raised.value)
    wrong["objective"]["peer"]["input_px"] = 64
    assert plan(wrong).runs


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (dict(peer=dict(_delete_=True, name="x", input_px=64)), "`peer`.* lacks the key"),
        (dict(peer="resnet18_w48"), "peer"),
        (dict(peer=dict(width=0)), "width = 0"),
        (dict(delta=0.0), "delta = 0"),
        (dict(tau=-1.0), "tau = -1"),
        (dict(reverse_weight=-0.5), "reverse_weight = -0.5"),
    ],
)
def test_the_plan_refuses_invalid_arguments(objective: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="bd_kd", objective=objective))


def test_the_objective_declares_that_it_reads_labels():
    with pytest.raises(KdepError, match="labels_used=False"):
        plan(dict(base="bd_kd", labels_used=False))


def test_without_a_peer_in_its_config_the_peer_has_the_student_s_architecture():
    stages = plan(dict(base="bd_kd", objective=dict(peer=None))).stages.values()
    (pretrain,) = (stage for stage in stages if stage.kind == "pretrain")
    config = pretrain.spec["method"]["objective"] | dict(width=tiny.DS, classes=tiny.CLASSES)
    model = Distiller(tiny.STUDENT, config)
    peer = model.objective.peer  # type: ignore[union-attr]
    assert peer.backbone.state_dict().keys() == model.backbone.state_dict().keys()  # type: ignore[union-attr]


def test_a_peer_with_a_wrong_width_in_its_config_is_refused():
    config = dict(
        type="kdep_bench.objectives.bd_kd.BalancedDivergences",
        width=tiny.DS,
        classes=tiny.CLASSES,
        peer=tiny.LARGER | dict(width=21),  # it is 20
    )
    with pytest.raises(KdepError, match=r"has 20 channels.*21"):
        Distiller(tiny.STUDENT, config)

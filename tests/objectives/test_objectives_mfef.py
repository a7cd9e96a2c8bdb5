"""MFEF: its formula in float64, its special cases, its gradients, its cost, what is refused.

A student and its peers (networks of the same architecture) learn from a fusion of their feature
maps. The formula, with its parts E_k and A_k, is in the docstring of `FusedMaps`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, StudentOutput, demands
from kdep_bench.objectives.mfef import DualAttention, FusedMaps, MultiScale
from kdep_bench.pretrain.diagnostics import extra_cost
from kdep_bench.pretrain.teaching import TeacherSource
from kdep_bench.suite.config import resolve
from kdep_bench.transfer.export import strip
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, TinyRun
from tests.objectives.test_objectives_hssakd import log_softmax
from tests.objectives.test_objectives_hssakd_online import Peer
from tests.suite.test_suite_methods import plan

CLASSES, IMAGES, WIDTH, CHANNELS, SIDE = 3, 4, 6, 5, 4
MAPS = {"s32": {"channels": CHANNELS, "stride": 32}}
LABELS = np.array([2, 0, 1, 1])


def output() -> StudentOutput:
    """Random float64 feature and map of a network."""
    after = torch.randn(IMAGES, WIDTH, dtype=torch.float64, requires_grad=True)
    s32 = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, dtype=torch.float64).relu()
    return StudentOutput(after, after, {"s32": s32.requires_grad_(True)})


def build(**arguments: Any) -> tuple[FusedMaps, Context, list[StudentOutput]]:
    """The objective, a batch with the student's outputs, and the outputs of all networks."""
    torch.manual_seed(0)
    objective = FusedMaps(WIDTH, CLASSES, MAPS, **arguments).double().eval()
    for attention in objective.attention:
        if isinstance(attention, DualAttention):  # its only hidden unit is active for all images
            nn.init.ones_(attention.channel[0].get_parameter("bias"))
    outputs = [output() for _ in range(arguments.get("peers", 1) + 1)]
    peers = iter(outputs[1:])
    objective.attach(nn.Identity(), lambda maps: Peer(next(peers)))
    ctx = Context(
        outputs[0].pre_activation,
        outputs[0].post_activation,
        labels=torch.from_numpy(LABELS),
        maps=outputs[0].maps,
        images=torch.zeros(IMAGES, 3, 32, 32),
    )
    return objective, ctx, outputs


def array(x: Any) -> np.ndarray:
    """The tensor without gradient, as an array."""
    return x.detach().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), element by element."""
    return 1 / (1 + np.exp(-x))


def convolution(x_BCHW: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[B, O, H, W]: a convolution of stride 1 with zero padding, by its definition.

    Args:
        x_BCHW: the input.
        weight: [O, C, k, k], k odd.
    """
    half, (h, w) = weight.shape[2] // 2, x_BCHW.shape[2:]
    padded = np.pad(x_BCHW, ((0, 0), (0, 0), (half, half), (half, half)))
    out = np.zeros((len(x_BCHW), len(weight), h, w))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            out += np.einsum("bchw,oc->bohw", padded[:, :, i : i + h, j : j + w], weight[..., i, j])
    return out


def attended(objective: FusedMaps, k: int, x_BCHW: np.ndarray) -> np.ndarray:
    """[B, C, H, W]: A_k(E_k(x)) of network k, from the formulas."""
    scales, attention = objective.scales[k], objective.attention[k]
    assert isinstance(scales, MultiScale)
    assert isinstance(attention, DualAttention)
    # Five channels in two parts: the first three, the last two.
    parts = [
        convolution(part, array(layer.weight))
        for part, layer in zip((x_BCHW[:, :3], x_BCHW[:, 3:]), scales.convolutions, strict=True)
    ]
    # BatchNorm of a new network in evaluation mode: mean 0, variance 1.
    scaled = np.maximum(np.concatenate(parts, 1) / np.sqrt(1 + scales.norm.eps), 0)
    statistics = np.stack([scaled.mean(1), scaled.max(1)], 1)
    position = attention.position
    position_weights = convolution(statistics, array(position.weight)) + array(position.bias)
    weighted = scaled * sigmoid(position_weights)
    first, _, last = attention.channel
    hidden = np.maximum(weighted.mean((2, 3)) @ array(first.weight).T + array(first.bias), 0)
    channel_weights = sigmoid(hidden @ array(last.weight).T + array(last.bias))
    return weighted * channel_weights[:, :, None, None]


@pytest.mark.parametrize("peers", [0, 1, 2])
def test_every_term_equals_the_formula_in_float64(peers: int):
    """Without peers, the fused map is the attended map of the student alone."""
    tau, a, b = 2.5, 0.7, 0.9
    objective, ctx, outputs = build(peers=peers, kernels=(1, 3), tau=tau, kl=a, maps=b)
    terms = {k: array(v) for k, v in objective.terms(ctx).items()}
    maps = [array(o.maps["s32"]) for o in outputs]
    fused = np.mean([attended(objective, k, x) for k, x in enumerate(maps)], axis=0)
    np.testing.assert_allclose(array(objective.fuse([o.maps["s32"] for o in outputs])), fused)
    heads = [objective.head, *objective.peer_heads]
    all_logits = [array(head(o.post_activation)) for head, o in zip(heads, outputs, strict=True)]
    head = objective.fused_head
    fused_logits = fused.mean((2, 3)) @ array(head.weight).T + array(head.bias)
    rows = np.arange(IMAGES)
    log_f = log_softmax(fused_logits, tau)
    expected = {"fused_cross_entropy": -log_softmax(fused_logits)[rows, LABELS]}
    for k, (logits, x) in enumerate(zip(all_logits, maps, strict=True)):
        prefix = "peer_" if k else ""  # the terms of all peers are summed
        values = {
            "cross_entropy": -log_softmax(logits)[rows, LABELS],
            "mutual": a * tau**2 * (np.exp(log_f) * (log_f - log_softmax(logits, tau))).sum(1),
            "maps": b * np.square(x - fused).mean((1, 2, 3)),
        }
        for name, value in values.items():
            expected[prefix + name] = expected.get(prefix + name, 0) + value
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-9, err_msg=name)


def test_more_kernels_than_channels_are_refused():
    with pytest.raises(KdepError, match="5 channels, which cannot be divided into 6 parts"):
        FusedMaps(WIDTH, CLASSES, MAPS, kernels=(1,) * 6)


def test_without_attention_the_fused_map_is_the_average():
    objective, _, outputs = build(attention=False)
    maps = [o.maps["s32"] for o in outputs]
    average = (objective.scales[0](maps[0]) + objective.scales[1](maps[1])) / 2
    torch.testing.assert_close(objective.fuse(maps), average)
    assert not list(objective.attention.parameters())


def test_a_network_cannot_lower_its_loss_by_moving_the_fused_target():
    objective, ctx, outputs = build()
    terms = objective.terms(ctx)
    fusion = [*objective.scales.parameters(), *objective.attention.parameters()]
    fusion += list(objective.fused_head.parameters())
    for name in ("mutual", "maps", "peer_mutual", "peer_maps"):
        gradients = torch.autograd.grad(
            terms[name].sum(), fusion, retain_graph=True, allow_unused=True
        )
        assert all(g is None or not g.any() for g in gradients), name
        other_network = outputs[0 if name.startswith("peer_") else 1]
        gradients = torch.autograd.grad(
            terms[name].sum(),
            [other_network.post_activation, other_network.maps["s32"]],
            retain_graph=True,
            allow_unused=True,
        )
        assert all(g is None or not g.any() for g in gradients), name
    # The cross-entropy of the fused logits trains the fusion and all networks.
    maps = [o.maps["s32"] for o in outputs]
    gradients = torch.autograd.grad(terms["fused_cross_entropy"].sum(), [*fusion, *maps])
    assert all(bool(g.any()) for g in gradients)


@pytest.mark.parametrize("peers", [0, 2])
def test_the_cost_includes_all_peers_and_only_the_student_is_exported(peers: int, tmp_path: Any):
    config = {**resolve("method", "mfef")["objective"], "peers": peers}
    run = TinyRun("mfef", tmp_path, config)
    passes: list[int] = []  # images per forward pass
    objective: Any = run.model.objective
    networks = [run.model.backbone, *(peer.backbone for peer in objective.peers)]
    for network in networks:
        network.register_forward_hook(lambda _m, args, _out: passes.append(len(args[0])))
    run.terms(tiny.batch(BATCH, 0))
    state = run.model.state_dict()
    cost = extra_cost(state, demands(config), TeacherSource(), BATCH)
    assert cost["extra_forwards"] == sum(passes) - BATCH == peers * BATCH
    weights = [network.convs[0].weight for network in networks]
    assert all(not torch.equal(weights[0], w) for w in weights[1:])
    kept, dropped = strip(state)
    assert set(kept) == set(tiny.TinyNet().state_dict())
    assert set(dropped) == {"objective"}
    assert cost["extra_parameters"] == sum(
        v.numel() for k, v in state.items() if k.startswith("objective.")
    )


def test_the_plan_has_no_teacher():
    stages = plan("mfef", teacher=None).stages.values()
    assert not any(stage.kind in ("cache", "align") for stage in stages)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(labels_used=False), "labels_used=False"),
        (dict(objective=dict(peers=4)), "peers = 4"),
        (dict(objective=dict(kernels=[2])), r"kernels\[0\] = 2"),
        (dict(objective=dict(kernels=[3, True])), r"kernels\[1\] = True; expected 1, 3, 5 or 7"),
        (dict(objective=dict(kernels=[])), r"kernels = \[\]"),
        (dict(objective=dict(tau=0.0)), "tau = 0"),
        (dict(objective=dict(student_level="s64")), "which method 'changed' reads"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="mfef", name="changed", **method))


def test_a_student_without_maps_is_refused_although_there_is_no_teacher():
    student = {**resolve("student", "resnet18_w32"), "name": "flat", "pyramid": {}}
    with pytest.raises(KdepError, match="needs feature maps, but the student's config"):
        plan("mfef", teacher=None, students=[student])

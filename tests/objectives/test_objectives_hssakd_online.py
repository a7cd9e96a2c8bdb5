"""HSSAKD's online form: its formula in float64, its gradients, its cost and what is refused.

A student and a second network, the peer, learn from each other; there is no teacher. The formula
and its weights a, b, c, d are in the docstring of `HssakdOnline`. Every image is in the batch four
times, rotated by 0, 90, 180 and 270 degrees.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdep_bench.augments.rotations import Rotations
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, StudentOutput, demands
from kdep_bench.objectives.hssakd_online import HssakdOnline
from kdep_bench.pretrain.diagnostics import extra_cost
from kdep_bench.pretrain.distiller import NewPyramid
from kdep_bench.pretrain.teaching import TeacherSource
from kdep_bench.suite.config import resolve
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, TinyRun
from tests.objectives.test_objectives_hssakd import log_softmax
from tests.suite.test_suite_methods import plan

CLASSES, IMAGES, WIDTH = 3, 2, 6
MAPS = {"s8": {"channels": 5, "stride": 8}, "s4": {"channels": 4, "stride": 4}}
LABELS = (2, 0)  # of the two images


def random_output() -> StudentOutput:
    """Random features and maps of two images in four rotations, in float64."""
    count = 4 * IMAGES
    after = torch.randn(count, WIDTH, dtype=torch.float64, requires_grad=True)
    maps = {
        level: torch.randn(count, m["channels"], 32 // m["stride"], 32 // m["stride"]).double()
        for level, m in MAPS.items()
    }
    return StudentOutput(after, after, {k: v.requires_grad_(True) for k, v in maps.items()})


class Peer(nn.Module):
    """A peer that returns the same output for all images."""

    def __init__(self, output: StudentOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, _images: Tensor) -> StudentOutput:
        """The fixed output."""
        return self.output


def build(**arguments: Any) -> tuple[HssakdOnline, Context, StudentOutput]:
    """The objective, a batch with the student's outputs, and the peer's outputs; float64."""
    torch.manual_seed(0)
    objective = HssakdOnline(WIDTH, CLASSES, MAPS, **arguments).double().eval()
    student, peer = random_output(), random_output()
    objective.attach(nn.Identity(), lambda maps: Peer(peer) if maps else None)  # type: ignore[arg-type]
    ctx = Context(
        student.pre_activation,
        student.post_activation,
        labels=torch.tensor(LABELS).repeat_interleave(4),
        maps=student.maps,
        images=torch.zeros(4 * IMAGES, 3, 32, 32),
        extra={"rotation": torch.arange(4).repeat(IMAGES)},
    )
    return objective, ctx, peer


def test_every_term_equals_the_formula_in_float64():
    tau, a, b, c, d = 2.5, 0.5, 0.7, 0.9, 1.3
    objective, ctx, peer = build(tau=tau, cross_entropy=a, main=b, joint=c, joint_cross_entropy=d)
    terms = {k: v.detach().numpy().mean() for k, v in objective.terms(ctx).items()}
    # Of the student (index 0) and the peer (1): logits of the classes, and per level logits of the
    # 4 * CLASSES pairs of class and rotation.
    class_logits = [
        logits.detach().numpy()
        for logits in (
            objective.head(ctx.post_activation),
            objective.peer_head(peer.post_activation),
        )
    ]
    joint_logits = [
        {level: heads[level](maps[level]).detach().numpy() for level in MAPS}
        for heads, maps in ((objective.joint, ctx.maps), (objective.peer_joint, peer.maps))
    ]

    def kl(t: np.ndarray, s: np.ndarray) -> float:
        """Mean of tau^2 KL(t || s) of two arrays of logits."""
        log_t, log_s = log_softmax(t, tau), log_softmax(s, tau)
        return float(tau**2 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean())

    # The batch holds images p (class 2) and q (class 0) as p0 p90 p180 p270 q0 ...; only rows 0 and
    # 4 are unrotated. The number of a pair of class y and rotation r is 4 y + r.
    joint_labels = np.array([4 * 2 + r for r in range(4)] + [4 * 0 + r for r in range(4)])
    expected = {}
    for i, prefix in enumerate(("", "peer_")):
        log_p, other = log_softmax(class_logits[i]), 1 - i
        expected[f"{prefix}cross_entropy"] = -a * (log_p[0, 2] + log_p[4, 0]) / 2
        expected[f"{prefix}mutual"] = b * kl(class_logits[other], class_logits[i])
        expected[f"{prefix}joint_mutual"] = c * sum(
            kl(joint_logits[other][level], joint_logits[i][level]) for level in MAPS
        )
        expected[f"{prefix}joint_cross_entropy"] = -d * sum(
            log_softmax(joint_logits[i][level])[np.arange(8), joint_labels].mean() for level in MAPS
        )
    assert terms == pytest.approx(expected, rel=1e-9)


def test_the_cross_entropy_reads_unrotated_images_only_and_the_mutual_term_all_rotations():
    objective, ctx, _ = build()
    before = objective.terms(ctx)
    feature = ctx.post_activation.detach().clone()
    feature[5] += 1.0  # of a rotated image
    changed = objective.terms(replace(ctx, post_activation=feature))
    assert torch.equal(changed["cross_entropy"], before["cross_entropy"])
    assert not torch.equal(changed["mutual"], before["mutual"])


def test_the_loss_of_each_of_the_two_networks_trains_only_that_network():
    """Otherwise a network could lower the KL divergence by changing the other one's output."""
    objective, ctx, peer = build()
    terms = objective.terms(ctx)
    for prefix, trained, fixed in (("", ctx, peer), ("peer_", peer, ctx)):  # student, then peer
        names = [k for k in terms if k.startswith("peer_") == bool(prefix)]
        loss = torch.stack([terms[k].sum() for k in names]).sum()
        tensors = [
            trained.post_activation,
            *trained.maps.values(),
            fixed.post_activation,
            *fixed.maps.values(),
        ]
        gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
        half = len(tensors) // 2  # those of the trained network are first
        assert all(g is not None and bool(g.any()) for g in gradients[:half])
        assert all(g is None or not g.any() for g in gradients[half:])
    torch.stack([t.mean() for t in terms.values()]).sum().backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_the_peer_has_other_weights_and_all_maps_and_its_loss_trains_only_it(tmp_path: Any):
    run = TinyRun("hssakd_online", tmp_path)
    peer = run.model.objective.peer
    assert isinstance(peer, NewPyramid)
    student_weight = run.model.backbone.get_parameter("convs.0.weight")
    assert not torch.equal(peer.backbone.get_parameter("convs.0.weight"), student_weight)
    output = peer(torch.randn(2, 3, tiny.PX, tiny.PX))
    levels = [f"s{stride}" for stride in tiny.STRIDES]
    channels = {level: x.shape[1] for level, x in output.maps.items()}
    assert channels == dict(zip(levels, tiny.CHANNELS, strict=True))
    torch.testing.assert_close(output.post_activation, output.maps["s16"].mean((2, 3)))
    run.terms(tiny.batch(BATCH, 0))["loss_peer_joint_mutual"].backward()
    gradient = peer.backbone.get_parameter("convs.0.weight").grad
    assert gradient is not None
    assert bool(gradient.any())
    assert student_weight.grad is None


def test_the_recorded_extra_passes_and_parameters_include_those_of_the_peer(tmp_path: Any):
    run = TinyRun("hssakd_online", tmp_path)
    passes: list[int] = []  # images per forward pass
    objective: Any = run.model.objective
    for network in (run.model.backbone, objective.peer.backbone):
        network.register_forward_hook(lambda _m, args, _out: passes.append(len(args[0])))
    run.terms(tiny.batch(BATCH, 0))
    required = demands(resolve("method", "hssakd_online")["objective"])
    cost = extra_cost(run.model.state_dict(), required, TeacherSource(), BATCH, Rotations.copies)
    # Two networks pass 4 rotations each; the student's pass of the image itself is no extra pass.
    assert cost["extra_forwards"] == sum(passes) - BATCH == 7 * BATCH
    peer_parameters = sum(v.numel() for v in objective.peer.state_dict().values())
    assert cost["extra_parameters"] > peer_parameters


def test_the_plan_has_no_teacher_and_reads_labels():
    stages = plan("hssakd_online", teacher=None).stages.values()
    assert not any(s.kind in ("cache", "align") for s in stages)
    (pretrain,) = (s for s in stages if s.kind == "pretrain")
    assert "teacher" not in pretrain.spec
    assert "prepare" in pretrain.needs


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(augment=None), "reads rotation, which its `augment` does not add"),
        (dict(labels_used=False), "labels_used=False"),
        (dict(objective=dict(tau=0.0)), "tau = 0"),
        (dict(objective=dict(joint_cross_entropy=-1.0)), "joint_cross_entropy = -1"),
        (dict(teacher_source="live"), "it reads no teacher"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="hssakd_online", name="changed", **method))


def test_a_student_without_maps_is_refused_although_there_is_no_teacher():
    student = {**resolve("student", "resnet18_w32"), "name": "flat", "pyramid": {}}
    with pytest.raises(KdepError, match="needs feature maps, but the student's config"):
        plan("hssakd_online", teacher=None, students=[student])

"""HSSAKD's online form: its formula in float64, its gradients, its cost and what is refused."""

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
LABELS = (2, 0)


def random_output() -> StudentOutput:
    """Random features of two images in four rotations, in float64."""
    n = 4 * IMAGES
    after = torch.randn(n, WIDTH, dtype=torch.float64, requires_grad=True)
    maps = {
        k: torch.randn(n, v["channels"], 32 // v["stride"], 32 // v["stride"]).double()
        for k, v in MAPS.items()
    }
    return StudentOutput(after, after, {k: v.requires_grad_(True) for k, v in maps.items()})


class Peer(nn.Module):
    """A peer with a fixed output."""

    def __init__(self, output: StudentOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, _images: Tensor) -> StudentOutput:
        return self.output


def built(**arguments: Any) -> tuple[HssakdOnline, Context, StudentOutput]:
    """The objective, the student's features and the peer's features."""
    torch.manual_seed(0)
    objective = HssakdOnline(WIDTH, CLASSES, MAPS, **arguments).double().eval()
    student, peer = random_output(), random_output()
    objective.attach(nn.Identity(), lambda maps: Peer(peer) if maps else None)  # type: ignore[arg-type]
    ctx = Context(
        student.before,
        student.after,
        labels=torch.tensor(LABELS).repeat_interleave(4),
        maps=student.maps,
        images=torch.zeros(4 * IMAGES, 3, 32, 32),
        extra={"rotation": torch.arange(4).repeat(IMAGES)},
    )
    return objective, ctx, peer


def test_every_term_equals_the_formula_in_float64():
    tau, a, b, c, d = 2.5, 0.5, 0.7, 0.9, 1.3
    objective, ctx, peer = built(tau=tau, cross_entropy=a, main=b, joint=c, joint_cross_entropy=d)
    terms = {k: v.detach().numpy().mean() for k, v in objective.terms(ctx).items()}
    z = [
        net.detach().numpy() for net in (objective.head(ctx.after), objective.peer_head(peer.after))
    ]
    joint = [
        {level: heads[level](maps[level]).detach().numpy() for level in MAPS}
        for heads, maps in ((objective.joint, ctx.maps), (objective.peer_joint, peer.maps))
    ]

    def kl(t: np.ndarray, s: np.ndarray) -> float:
        log_t, log_s = log_softmax(t, tau), log_softmax(s, tau)
        return float(tau**2 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean())

    # The batch holds images p and q as p0 p90 p180 p270 q0 ...; only p0 and q0 are unrotated.
    y4r = np.array([4 * 2 + r for r in range(4)] + [4 * 0 + r for r in range(4)])
    expected = {}
    for i, prefix in enumerate(("", "peer_")):
        log_p, j = log_softmax(z[i]), 1 - i
        expected[f"{prefix}cross_entropy"] = -a * (log_p[0, 2] + log_p[4, 0]) / 2
        expected[f"{prefix}mutual"] = b * kl(z[j], z[i])
        expected[f"{prefix}joint_mutual"] = c * sum(kl(joint[j][k], joint[i][k]) for k in MAPS)
        expected[f"{prefix}joint_cross_entropy"] = -d * sum(
            log_softmax(joint[i][k])[np.arange(8), y4r].mean() for k in MAPS
        )
    assert terms == pytest.approx(expected, rel=1e-9)


def test_the_cross_entropy_reads_unrotated_images_only_and_the_mutual_term_all_rotations():
    objective, ctx, _ = built()
    before = objective.terms(ctx)
    after = ctx.after.detach().clone()
    after[5] += 1.0  # a rotated image
    changed = objective.terms(replace(ctx, after=after))
    assert torch.equal(changed["cross_entropy"], before["cross_entropy"])
    assert not torch.equal(changed["mutual"], before["mutual"])


def test_a_student_s_loss_trains_only_that_student():
    """Otherwise a student could lower the KL by moving its own target."""
    objective, ctx, peer = built()
    terms = objective.terms(ctx)
    for prefix, trained, fixed in (("", ctx, peer), ("peer_", peer, ctx)):
        names = [k for k in terms if k.startswith("peer_") == bool(prefix)]
        loss = torch.stack([terms[k].sum() for k in names]).sum()
        tensors = [trained.after, *trained.maps.values(), fixed.after, *fixed.maps.values()]
        gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
        n = len(tensors) // 2
        assert all(g is not None and bool(g.any()) for g in gradients[:n])
        assert all(g is None or not g.any() for g in gradients[n:])
    torch.stack([t.mean() for t in terms.values()]).sum().backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_the_peer_is_another_network_with_all_maps_and_is_dropped_at_export(tmp_path: Any):
    run = TinyRun("hssakd_online", tmp_path)
    peer = run.model.objective.peer
    assert isinstance(peer, NewPyramid)
    student_weight = run.model.backbone.get_parameter("convs.0.weight")
    assert not torch.equal(peer.backbone.get_parameter("convs.0.weight"), student_weight)
    output = peer(torch.randn(2, 3, tiny.PX, tiny.PX))
    assert {k: v.shape[1] for k, v in output.maps.items()} == dict(
        zip([f"s{s}" for s in tiny.STRIDES], tiny.CHANNELS, strict=True)
    )
    torch.testing.assert_close(output.after, output.maps["s16"].mean((2, 3)))
    run.terms(tiny.batch(BATCH, 0))["loss_peer_joint_mutual"].backward()
    gradient = peer.backbone.get_parameter("convs.0.weight").grad
    assert gradient is not None
    assert bool(gradient.any())
    assert student_weight.grad is None


def test_all_passes_of_both_students_are_counted(tmp_path: Any):
    run = TinyRun("hssakd_online", tmp_path)
    passes: list[int] = []
    objective: Any = run.model.objective
    for network in (run.model.backbone, objective.peer.backbone):
        network.register_forward_hook(lambda _m, args, _out: passes.append(len(args[0])))
    run.terms(tiny.batch(BATCH, 0))
    required = demands(resolve("method", "hssakd_online")["objective"])
    cost = extra_cost(run.model.state_dict(), required, TeacherSource(), BATCH, Rotations.copies)
    assert cost["extra_forwards"] == sum(passes) - BATCH == 7 * BATCH
    peer = sum(v.numel() for v in objective.peer.state_dict().values())
    assert cost["extra_parameters"] > peer


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
        (dict(teacher_source="live"), "its teacher is none"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="hssakd_online", name="changed", **method))


def test_a_student_without_maps_is_refused_although_there_is_no_teacher():
    student = {**resolve("student", "resnet18_w32"), "name": "flat", "pyramid": {}}
    with pytest.raises(KdepError, match="needs feature maps, but the student's config"):
        plan("hssakd_online", teacher=None, students=[student])

"""Objectives that compare feature maps: normalised feature distillation (NFD), FitNets' hints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.runner import load_state_dict
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.hints import Hints
from kdep_bench.objectives.maps import resize_map
from kdep_bench.objectives.nfd import NFD, standardised
from kdep_bench.teachers.base import TeacherOutput

STUDENT = {"s8": {"channels": 3, "stride": 8}, "s16": {"channels": 4, "stride": 16}}
TEACHER = {"a": {"channels": 3, "stride": 8}, "b": {"channels": 6, "stride": 16}}


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise with a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(teacher: dict[str, Tensor], **maps: Tensor) -> Context:
    """A batch with these maps of the teacher and, as keywords, of the student."""
    pooled = torch.zeros(2, 4)
    teacher_output = TeacherOutput(torch.zeros(2, 5), None, teacher)
    return Context(pre_activation=pooled, post_activation=pooled, teacher=teacher_output, maps=maps)


def build(kind: Any, levels: dict[str, str], **arguments: Any) -> Any:
    """An objective of this class with fixed initial weights."""
    torch.manual_seed(0)
    return kind(levels, student_maps=STUDENT, teacher_maps=TEACHER, **arguments)


def test_nfd_equals_two_minus_twice_the_correlation():
    """Per channel, the correlation is over positions; the loss is the mean over channels."""
    student, teacher = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    loss = build(NFD, {"s8": "a"}, weight=1.0).terms(context({"a": teacher}, s8=student))["s8"]
    correlation = torch.zeros(2, 3)
    for b in range(2):
        for c in range(3):
            channels = torch.stack((student[b, c].ravel(), teacher[b, c].ravel()))
            correlation[b, c] = torch.corrcoef(channels)[0, 1]
    torch.testing.assert_close(loss, (2 - 2 * correlation).mean(1), atol=1e-4, rtol=0)


def test_nfd_ignores_the_scale_and_shift_of_channels():
    student, teacher = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    scale, shift = rand(1, 3, 1, 1, seed=2).abs() + 0.5, rand(1, 3, 1, 1, seed=3)
    nfd = build(NFD, {"s8": "a"})
    expected = nfd.terms(context({"a": teacher}, s8=student))["s8"]
    for scaled in (
        context({"a": teacher * scale + shift}, s8=student),
        context({"a": teacher}, s8=student * scale + shift),
    ):
        torch.testing.assert_close(nfd.terms(scaled)["s8"], expected, atol=1e-3, rtol=1e-3)


def test_a_constant_channel_gives_a_loss_of_0_and_a_finite_gradient():
    student, teacher = torch.ones(2, 3, 4, 4, requires_grad=True), torch.ones(2, 3, 4, 4)
    loss = build(NFD, {"s8": "a"}).terms(context({"a": teacher}, s8=student))["s8"].sum()
    loss.backward()
    assert float(loss) == 0
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    assert not standardised(torch.ones(1, 1, 2, 2)).any()


@pytest.mark.parametrize("kind", [NFD, Hints])
def test_teacher_maps_of_another_size_are_resized_to_the_student_maps(kind: Any):
    """Larger maps are averaged, smaller ones interpolated."""
    student, teacher = rand(2, 4, 4, 4, seed=1), rand(2, 6, 8, 8)
    loss = build(kind, {"s16": "b"}).terms(context({"b": teacher}, s16=student))["s16"]
    averaged = torch.nn.functional.avg_pool2d(teacher, 2)
    # A new objective, as the first one keeps the scale of its first batch.
    expected = build(kind, {"s16": "b"}).terms(context({"b": averaged}, s16=student))["s16"]
    torch.testing.assert_close(loss, expected)
    assert loss.shape == (2,)
    # Upsampling interpolates; a broadcast would repeat single values.
    upsampled = resize_map(rand(2, 6, 2, 2), (4, 4))
    assert upsampled.shape == (2, 6, 4, 4)
    assert len(upsampled[0, 0].unique()) > 4
    two_pixels = torch.tensor([[[[0.0, 1.0]]]])
    # Positions refer to the centres of pixels (align_corners=False).
    assert resize_map(two_pixels, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]
    numbered = torch.arange(8.0).view(1, 1, 2, 4)  # rows 0 1 2 3 and 4 5 6 7
    # The means of 0, 1, 4, 5 and of 2, 3, 6, 7.
    assert resize_map(numbered, (1, 2)).flatten().tolist() == [2.5, 4.5]
    same_size = rand(1, 2, 3, 3)
    assert resize_map(same_size, (3, 3)) is same_size


def test_the_loss_of_hints_is_0_if_the_projector_maps_student_to_teacher():
    hints = build(Hints, {"s8": "a"})
    projector = hints.through["s8"][0]  # a 1 x 1 convolution
    student = rand(2, 3, 4, 4)
    rotation = torch.linalg.qr(rand(3, 3, seed=5))[0]
    rotated = torch.einsum("dc,bchw->bdhw", rotation, student)
    with torch.no_grad():
        projector.weight.copy_(torch.eye(3)[:, :, None, None])
        projector.bias.zero_()
    assert not hints.terms(context({"a": student}, s8=student))["s8"].any()
    assert hints.terms(context({"a": rotated}, s8=student))["s8"].min() > 0.1
    with torch.no_grad():
        projector.weight.copy_(rotation[:, :, None, None])
    assert hints.terms(context({"a": rotated}, s8=student))["s8"].max() < 1e-9


@pytest.mark.parametrize("distance", ["l2", "l1", "huber"])
def test_the_loss_of_a_zero_output_is_the_weight_for_any_scale_of_the_teacher(distance: str):
    for scale in (1.0, 100.0):
        # With init 0 and the bias 0 the projector's output is 0.
        hints = build(Hints, {"s8": "a"}, distance=distance, weight=7.0, init=0.0)
        torch.nn.init.zeros_(hints.through["s8"][0].bias)
        terms = hints.terms(context({"a": scale * rand(2, 3, 4, 4)}, s8=rand(2, 3, 4, 4, seed=1)))
        assert float(terms["s8"].mean()) == pytest.approx(7.0, rel=1e-4)


def test_the_scale_of_the_first_batch_is_kept_and_saved():
    hints = build(Hints, {"s8": "a"}, hidden=5)
    student, teacher = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    hints.terms(context({"a": teacher}, s8=student))
    means = hints.scale.means.clone()
    hints.terms(context({"a": 10 * teacher}, s8=student))
    assert torch.equal(hints.scale.means, means)
    restored = build(Hints, {"s8": "a"}, hidden=5)
    restored.load_state_dict(hints.state_dict())
    assert torch.equal(restored.scale.means, means)


def test_a_checkpoint_of_an_earlier_release_keeps_its_scale():
    """If the former name were ignored, the resumed run would use the scale of a later batch.

    There would be no error, as mmengine loads resume files with a separate, non-strict function.
    """
    hints = build(Hints, {"s8": "a"}, hidden=5)
    hints.terms(context({"a": rand(2, 3, 4, 4, seed=1)}, s8=rand(2, 3, 4, 4)))
    former_state = hints.state_dict()
    former_state["scale.energy"] = former_state.pop("scale.means")
    for load in (torch.nn.Module.load_state_dict, load_state_dict):
        restored = build(Hints, {"s8": "a"}, hidden=5)
        load(restored, former_state, strict=False)
        assert torch.equal(restored.scale.means, hints.scale.means)


def test_the_scale_is_the_mean_over_all_ranks(monkeypatch: pytest.MonkeyPatch):
    """The scale of two ranks with the means 3 and 5 is 4."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.add_(5.0))  # the other rank's
    scale = FirstBatch(2)
    assert float(scale(lambda: torch.tensor(3.0), "a map", 1)) == 4.0
    assert scale.means.tolist() == [0.0, 4.0]


def test_invalid_levels_and_distances_and_a_teacher_map_of_zeros_are_refused():
    for levels, message in (
        ({}, "has no level"),
        ({"s9": "a"}, "level 's9' in the student"),
        ({"s8": "c"}, "map 'c' in the teacher"),
    ):
        with pytest.raises(KdepError, match=message):
            build(NFD, levels)
    with pytest.raises(KdepError, match="distance"):
        build(Hints, {"s8": "a"}, distance="l3")
    zeros = torch.zeros(2, 3, 4, 4)
    with pytest.raises(KdepError, match="first batch"):
        build(Hints, {"s8": "a"}).terms(context({"a": zeros}, s8=rand(2, 3, 4, 4)))

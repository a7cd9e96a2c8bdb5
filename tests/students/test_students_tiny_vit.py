"""The family of TinyViTs: its computed size is that of timm's networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdep_bench.flops import forward_flops
from kdep_bench.networks.backbone import PreActivationTap, build_backbone
from kdep_bench.students.discover import check_pyramid
from kdep_bench.students.space import Size
from kdep_bench.students.tiny_vit import TinyVitFamily

SMALL: dict[str, Any] = dict(heads1=1, heads2=2, heads3=3, heads4=4, depth3=2)


@pytest.mark.parametrize(
    ("px", "arguments"),
    [
        (64, {}),
        (64, dict(SMALL, depth1=1, depth2=1, depth4=1, expansion=2.5, mlp_ratio=1.5)),
        (96, dict(SMALL, window2=7, window3=5, window4=2)),  # maps that are padded
        (64, dict(SMALL, head=16, heads1=2)),
    ],
)
def test_the_computed_parameters_and_flops_equal_those_of_the_built_network(
    px: int, arguments: dict[str, Any]
):
    member = TinyVitFamily(px, **arguments)
    student = member.student()
    net = build_backbone(student)
    parameters = sum(p.numel() for p in net.parameters())
    assert member.size() == Size(parameters, forward_flops(net, torch.zeros(1, 3, px, px)))
    PreActivationTap(net, student["tap"]).verify(student["width"], px)
    check_pyramid(student, net)


def test_the_default_student_with_the_windows_of_tinyvit_11m_has_its_size():
    # The windows 7, 14 and 7 are those of TinyViT-11M; they set the number of position biases.
    # mmpretrain's model zoo: 11.0 M parameters with the classifier of 1000 classes.
    member = TinyVitFamily(224, window2=7, window3=14, window4=7)
    classifier = 448 * 1000 + 1000
    assert member.size().params + classifier == pytest.approx(11.0e6, rel=0.005)
    # mmpretrain's model zoo: 2.05 G multiply-adds, which are half of the FLOPs.
    assert member.size().flops / 2 == pytest.approx(2.05e9, rel=0.05)


def test_different_students_have_different_names():
    changes = [dict(), dict(depth3=4), dict(window3=2), dict(mlp_ratio=3.5), dict(head=16)]
    names = {TinyVitFamily(64, **change).student()["name"] for change in changes}
    assert len(names) == len(changes)
    assert max(map(len, names)) <= 48

"""Spaces of students: the architecture and method settings that a search may choose from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.flops import forward_flops
from kdep_bench.networks.backbone import PreActivationTap, build_backbone
from kdep_bench.students.discover import check_pyramid
from kdep_bench.students.space import Dimension, Limits, ResNetFamily, Size, Space

FAMILY = dict(type="kdep_bench.students.space.ResNetFamily", input_px=64)


def space(*dimensions: tuple[str, list[Any]], **family: Any) -> Space:
    """A space with these (key, values); `family` holds further arguments of the family."""
    return Space([Dimension(k, v) for k, v in dimensions], {**FAMILY, **family})


@pytest.mark.parametrize(
    "arguments",
    [
        dict(depth1=1, depth2=2, depth3=1, depth4=3, width=16, growth=1.5, stem="3x3"),
        dict(depth1=2, depth2=1, depth3=1, depth4=1, width=64, growth=1.0, stem="7x7"),
        dict(depth1=1, depth2=1, depth3=2, depth4=1, width=24, growth=2.0, stem="7x7"),
    ],
)
def test_the_computed_parameters_and_flops_equal_those_of_the_built_network(
    arguments: dict[str, Any],
) -> None:
    px = 48 if arguments["width"] == 24 else 64  # one case has another image size
    member = ResNetFamily(px, **arguments)
    student = member.student()
    net = build_backbone(student)
    parameters = sum(p.numel() for p in net.parameters())
    counted = Size(parameters, forward_flops(net, torch.zeros(1, 3, px, px)))
    assert member.size() == counted
    PreActivationTap(net, student["tap"]).verify(student["width"], px)
    check_pyramid(student, net)


def test_different_students_have_different_names() -> None:
    members = [
        ResNetFamily(64, depth1=depth1, depth2=depth2, width=width, growth=growth, stem=stem)
        for depth1 in (1, 11)
        for depth2 in (1, 11)
        for width in (8, 16)
        for growth in (1.5, 1.25)
        for stem in ("7x7", "3x3")
    ]
    assert len({member.student()["name"] for member in members}) == len(members)


def test_the_first_student_within_the_limits_is_found_or_the_smallest_is_reported() -> None:
    searched = space(("student.width", [64, 8, 32]), ("method.transform.n", [1.0, 3.0]))
    assert len(list(searched.students())) == 3
    small = searched.first_within(Limits(params=300_000))
    assert small == {"student.width": 8, "method.transform.n": 1.0}
    with pytest.raises(
        KdepError, match=r"no student of the space is within.*smallest of 3 has 189,616 para"
    ):
        searched.first_within(Limits(params=1000))
    with pytest.raises(KdepError, match=r"limits of 10 FLOPs"):
        searched.first_within(Limits(flops=10))


@pytest.mark.parametrize(
    ("dimensions", "family", "message"),
    [
        ([], {}, "has no dimension"),
        ([("student.width", [])], {}, "'student.width' of the space has no values"),
        ([("student.width", [8, 16, 8])], {}, "lists the value 8 twice"),
        (
            [("student.width", [8]), ("student.width", [16])],
            {},
            "has two dimensions 'student.width'",
        ),
        ([("student.width", [8])], {"width": 16}, "`family` .* argument of .* 'student.width'"),
        (
            [("method.transform", [None]), ("method.transform.n", [1.0])],
            {},
            "dimensions 'method.transform' and 'method.transform.n' .* overlap",
        ),
        ([("width", [8])], {}, "has a dimension with the key 'width'"),
        ([("method.", [8])], {}, "has a dimension with the key 'method.'"),
    ],
)
def test_a_space_that_is_ambiguous_or_empty_is_refused(
    dimensions: list[Any], family: dict[str, Any], message: str
) -> None:
    with pytest.raises(KdepError, match=message):
        space(*dimensions, **family)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("student.depth5", 1, "unknown argument 'depth5' in .*ResNetFamily"),
        ("student.depth1", 0, "depth1 = 0; expected a number of at least 1"),
        ("student.width", 12, "width of a student of ResNetFamily is 12; expected a multiple of 8"),
        ("student.stem", "5x5", "stem = '5x5'"),
    ],
)
def test_the_error_for_a_value_that_the_family_does_not_accept_names_the_argument(
    key: str, value: Any, message: str
) -> None:
    with pytest.raises(KdepError, match=message):
        space((key, [value])).first_within(Limits())


def test_a_type_that_is_not_a_family_of_students_is_refused() -> None:
    dimensions = [Dimension("method.x", (1,))]
    with pytest.raises(KdepError, match="`family` of the search has no type"):
        Space(dimensions, {})
    searched = Space(dimensions, {"type": "kdep_bench.probes.knn.Knn"})
    with pytest.raises(KdepError, match="is not a family of students"):
        searched.first_within(Limits())


def test_method_dimensions_become_nested_overrides() -> None:
    searched = space(("method.transform.n", [3.0]), ("method.optimizer.lr", [0.1]))
    overrides = searched.settings({"method.transform.n": 3.0, "method.optimizer.lr": 0.1})
    assert overrides == {"transform": {"n": 3.0}, "optimizer": {"lr": 0.1}}

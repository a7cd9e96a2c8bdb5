"""Shared functions of objectives on feature maps: pair levels, match channels and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.base import Context

Maps = Mapping[str, Mapping[str, int]]  # name -> {"channels": C, "stride": s, ...}


def check_levels(levels: Mapping[str, str], student_maps: Maps, teacher_maps: Maps) -> None:
    """Raises KdepError if `levels` is empty or names a map that student or teacher do not have."""
    if not levels:
        raise KdepError(
            "an objective on feature maps has no levels",
            expected="levels={student level: teacher map}",
            fix="set `levels` in the method's objective",
        )
    for student_map, teacher_map in levels.items():
        if student_map not in student_maps:
            raise unknown_name("level", student_map, student_maps, place="the student")
        if teacher_map not in teacher_maps:
            raise unknown_name("map", teacher_map, teacher_maps, place="the teacher")


def make_projectors(
    levels: Mapping[str, str],
    student_maps: Maps,
    teacher_maps: Maps,
    make: Any,
    project_equal_channels: bool,
) -> nn.ModuleDict:
    """A module per student level that maps its channels to those of the teacher's map.

    Args:
        levels: {student level: teacher map}.
        student_maps, teacher_maps: the maps of student and teacher by name.
        make: called with (student channels, teacher channels); returns the module.
        project_equal_channels: whether `make` is also called for a level where student and teacher
            have equal numbers of channels; otherwise the module of such a level is the identity.
    """
    modules: dict[str, nn.Module] = {}
    for student_map, teacher_map in levels.items():
        student_channels = student_maps[student_map]["channels"]
        teacher_channels = teacher_maps[teacher_map]["channels"]
        if student_channels == teacher_channels and not project_equal_channels:
            modules[student_map] = nn.Identity()
        else:
            modules[student_map] = make(student_channels, teacher_channels)
    return nn.ModuleDict(modules)


def pairs(
    ctx: Context, levels: Mapping[str, str], level_projectors: nn.ModuleDict
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields (level, projected student map, teacher map), both maps at the student's size.

    Raises:
        KdepError: the two maps have different numbers of channels.
    """
    assert ctx.teacher is not None
    for student_map, teacher_map in levels.items():
        s = level_projectors[student_map](ctx.maps[student_map])
        t = resize_map(ctx.teacher.maps[teacher_map], (s.shape[2], s.shape[3]))
        if s.shape != t.shape:
            raise KdepError(
                f"level {student_map} of the student has the shape {tuple(s.shape[1:])} and map "
                f"{teacher_map} of the teacher {tuple(t.shape[1:])}",
                expected="equal numbers of channels after the projector",
                fix="correct `pyramid` in the student's config",
            )
        yield student_map, s, t

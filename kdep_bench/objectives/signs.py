"""Ways to represent a signed target in channels that a ReLU keeps non-negative. Imports no torch.

How much of a signed feature a non-negative one can represent has a closed form. Take K uncorrelated
target channels g_k, symmetric about zero, of variances v_1 >= v_2 >= ... (those of an SVD). The
best non-negative approximation of g_k is max(g_k, 0), with error E[min(g_k, 0)^2] = v_k / 2.
So with one student channel per component ("plain"), at most half of the variance of the first C
components is represented: (v_1 + ... + v_C) / 2. With "pairs", g_k = max(g_k, 0) - max(-g_k, 0)
takes two channels and loses nothing: v_1 + ... + v_(C/2) is represented. Since the variances fall,
the first half of the components holds at least half of all the variance, so

    kept("pairs") - kept("plain") = ((v_1 + ... + v_(C/2)) - (v_(C/2+1) + ... + v_C)) / 2 >= 0,

with equality for a flat spectrum alone. "rotation" turns the C components by a fixed random
orthogonal matrix: each channel then holds the mean variance and is still symmetric, so the bound is
that of "plain". For a feature before its activation nothing is lost, and "plain" is best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.features.policies import check_widths

SIGNS = {
    "plain": "one channel per component, negative values and all",
    "pairs": "two channels per component: its positive and its negative part",
    "rotation": "one channel per component, after a fixed random rotation of all of them",
}


def components(sign: str, channels: int, where: str = "the student") -> int:
    """Number of teacher components that a student map of `channels` channels represents.

    Raises KdepError for an unknown `sign`, and for "pairs" with an odd number of channels.
    """
    if sign not in SIGNS:
        raise unknown_name("form of the sign", sign, SIGNS)
    if sign != "pairs":
        return channels
    if channels % 2:
        raise KdepError(
            f"{where} has {channels} channels, but sign='pairs' needs an even number",
            fix="choose sign='rotation' or another student",
        )
    return channels // 2


def check_map_targets(
    objective: Any, student: Mapping[str, int], teacher: Mapping[str, int], who: str
) -> None:
    """Refuses levels that cannot be given a target without learned weights: KdepError.

    Args:
        objective: a method's objective config, its parts included.
        student: channels by level, as the student's config declares them ("s16": 128).
        teacher: channels by map, as the teacher's card states them; maps it does not name are
            checked when the run begins.
        who: the method and student, for messages.
    """
    if not isinstance(objective, Mapping):
        return
    levels = objective.get("levels")
    if str(objective.get("type")).endswith(".MapRegression") and isinstance(levels, Mapping):
        policy = (objective.get("align") or {}).get("policy")
        for student_level, teacher_map in levels.items():
            if student_level not in student:
                continue  # refused by the check of levels
            need = components(
                objective.get("sign", "pairs"),
                student[student_level],
                f"{who}: level {student_level} of the student",
            )
            if teacher_map in teacher:
                check_widths(
                    need, teacher[teacher_map], policy, f"map {teacher_map} of the teacher"
                )
    for value in objective.values():
        check_map_targets(value, student, teacher, who)

"""Forms of a signed regression target for student channels after a ReLU. Imports no torch.

A feature after a ReLU is non-negative, so it can represent only a part of a signed target. This
part can be computed. Let the student have C channels. Let the channels of the target, g_1, g_2, ...
(the components of an SVD), be uncorrelated and symmetric about zero, with variances
v_1 >= v_2 >= ...

"plain": one student channel per component. The best non-negative approximation of g_k is
max(g_k, 0), with error E[min(g_k, 0)^2] = v_k / 2. So half of the variance of C components is
represented: (v_1 + ... + v_C) / 2.

"pairs": two student channels per component, since g_k = max(g_k, 0) - max(-g_k, 0). All variance of
C / 2 components is represented: v_1 + ... + v_(C/2). The difference to "plain" is

    ((v_1 + ... + v_(C/2)) - (v_(C/2+1) + ... + v_C)) / 2,

which is positive unless all variances are equal.

"rotation": the C components are rotated by a fixed random orthogonal matrix, so that all channels
have about the same variance. They stay symmetric about zero, so the represented variance is the
same as with "plain".

For a feature before its activation, "plain" represents the whole variance of C components.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.features.policies import check_widths

SIGNS = {
    "plain": "one channel per component, with its sign",
    "pairs": "two channels per component: its positive and its negative part",
    "rotation": "one channel per component, after a fixed random rotation of all of them",
}


def components(sign: str, channels: int, where: str = "the student") -> int:
    """Number of SVD components that are regressed by a student map with `channels` channels.

    `where` names the map in errors.

    Raises:
        KdepError: an unknown `sign`, or "pairs" with an odd number of channels.
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
    objective: Any, student: Mapping[str, int], teacher: Mapping[str, int], subject: str
) -> None:
    """Checks at planning time that every level of a MapRegression can have a target.

    Args:
        objective: config of a method's objective; its parts are checked as well.
        student: {level: channels} of the student's config ("s16": 128).
        teacher: {map: channels} in the `card` of the teacher's config; other maps are checked when
            training starts.
        subject: the method and student, for errors.

    Raises:
        KdepError: "pairs" with an odd number of channels, or more components than the teacher's map
            has channels without a policy in `align`.
    """
    if not isinstance(objective, Mapping):
        return
    levels = objective.get("levels")
    if str(objective.get("type")).endswith(".MapRegression") and isinstance(levels, Mapping):
        policy = (objective.get("align") or {}).get("policy")
        for student_level, teacher_map in levels.items():
            if student_level not in student:
                continue  # another check of the plan reports unknown levels
            required = components(
                objective.get("sign", "pairs"),
                student[student_level],
                f"{subject}: level {student_level} of the student",
            )
            if teacher_map in teacher:
                check_widths(
                    required, teacher[teacher_map], policy, f"map {teacher_map} of the teacher"
                )
    for value in objective.values():
        check_map_targets(value, student, teacher, subject)

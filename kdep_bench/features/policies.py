"""What to do when the student is wider than the teacher (Ds > Dt). No torch: the plan reads this.

KDEP's public code never meets the case (2048 -> 512 or 1280); ViT-S (384) -> ResNet-18 (512) does.
Nothing is done unless the method's `align` names one of these as `policy`, in a suite for example
`dict(base="kdep", name="kdep_padded", align=dict(_delete_=True, type="svd", policy="zero_pad"))`.
"""

from __future__ import annotations

from typing import Any

from kdep_bench.errors import KdepError, unknown_name

POLICIES = {
    "zero_pad": "channels Dt and above are zero",
    "random_rotation": "zero-padded, then turned by a seeded orthogonal matrix, so that all move",
    "repeat": "channel j is channel j mod Dt again",
}


def check_widths(
    student: int, teacher: int, policy: Any, name: str = "the teacher", equal: bool = False
) -> None:
    """Raises KdepError for Ds > Dt without a policy, and for a policy that does not exist.

    `name` is what the teacher is called; `equal` refuses Ds < Dt too (the identity alignment).
    """
    if policy is not None and policy not in POLICIES:
        raise unknown_name("policy of method.align", str(policy), POLICIES)
    if student > teacher and policy is None:
        raise KdepError(
            f"the student is {student} wide and {name} {teacher}",
            "a student no wider than the teacher",
            "choose a wider teacher or a narrower student, or name a policy in method.align "
            f"({', '.join(POLICIES)})",
        )
    if equal and student < teacher:
        raise KdepError(
            f"the student is {student} wide and {name} {teacher}",
            "equal widths for the identity alignment",
            "choose another alignment, such as svd",
        )

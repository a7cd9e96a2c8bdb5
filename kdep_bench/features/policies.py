"""What to do when the student is wider than the teacher (Ds > Dt). No torch: the plan reads this.

KDEP's public code never meets the case (2048 -> 512 or 1280); ViT-S (384) -> ResNet-18 (512) does.
Nothing is done unless the method's `align` names one of these as `policy`, in a suite for example
`dict(base="kdep", name="kdep_padded", align=dict(_delete_=True, type="svd", policy="zero_pad"))`.
"""

from __future__ import annotations

import math
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
            f"the student has {student} channels and {name} only {teacher}",
            fix="choose a wider teacher or a narrower student, or name a policy in method.align "
            f"({', '.join(POLICIES)})",
        )
    if equal and student < teacher:
        raise KdepError(
            f"the student has {student} channels and {name} {teacher}",
            expected="equal widths, because the alignment is the identity",
            fix="choose another alignment, such as svd",
        )


def check_rows(images: int, views: int, directions: int, share: float, pool: int, who: str) -> None:
    """Raises KdepError unless there are more features than directions to fit to them.

    Args:
        images: of the share; each gives one feature for each of its `views`.
        directions: of the alignment: the student's width, or the teacher's where that is smaller.
        share, pool: the share and the images of the whole pool, for what may be done about it.
        who: what is fitted, for the sentence.
    """
    if images * views > directions:
        return
    ways = []
    needed = math.floor(directions / views) + 1
    if share < 1 and pool >= needed:
        ways.append(f"use a data fraction of {math.ceil(1000 * needed / pool) / 1000:g} or more")
    ways.append(f"set budget.views to {math.floor(directions / max(images, 1)) + 1} or more")
    each = "1 fixed view" if views == 1 else f"{views} fixed views"
    ways.append(f"add images to the pool ({needed} with {each} each)")
    ways.append("choose a narrower student or a method without alignment")
    raise KdepError(
        f"{who}: {images} images with {each} each give {images * views} features, too few to "
        f"estimate {directions} directions",
        expected=f"more than {directions} features",
        fix=", or ".join(ways),
    )

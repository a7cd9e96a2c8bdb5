"""Policies for a student wider than the teacher (Ds > Dt). No torch: planning imports this.

Ds and Dt are the numbers of channels of the student's and of the teacher's pooled feature.

KDEP's public code has no such case (2048 -> 512 or 1280); an example is ViT-S (384) -> ResNet-18
(512). Such a student is an error unless the method's `align` has one of the policies:
`dict(base="kdep", name="kdep_padded", align=dict(_delete_=True, type="svd", policy="zero_pad"))`.
"""

from __future__ import annotations

import math
from typing import Any

from kdep_bench.errors import KdepError, unknown_name

POLICIES = {
    "zero_pad": "channels Dt and above are zero",
    "random_rotation": "zero-padded, then multiplied by a seeded orthogonal matrix",
    "repeat": "channel j is a copy of channel j mod Dt",
}


def check_widths(
    student: int,
    teacher: int,
    policy: Any,
    name: str = "the teacher",
    must_be_equal: bool = False,
) -> None:
    """Raises KdepError for a wider student without a policy, and for an unknown policy.

    Args:
        student: number of channels of the student's feature.
        teacher: number of channels of the teacher's feature.
        policy: `policy` of the method's `align`, or None.
        name: the teacher's name, for the error.
        must_be_equal: whether a narrower student is an error as well (for the identity alignment).
    """
    if policy is not None and policy not in POLICIES:
        raise unknown_name("policy", str(policy), POLICIES, place="method.align")
    if student > teacher and policy is None:
        raise KdepError(
            f"the student has {student} channels and {name} only {teacher}",
            fix="choose a wider teacher or a narrower student, or set `policy` in the method's "
            f"`align` to one of {', '.join(POLICIES)}",
        )
    if must_be_equal and student < teacher:
        raise KdepError(
            f"the student has {student} channels and {name} {teacher}",
            expected="equal widths, because the alignment is the identity",
            fix="choose another alignment, such as svd",
        )


def check_rows(
    images: int, views: int, directions: int, fraction: float, pool: int, subject: str
) -> None:
    """Raises KdepError unless there are more features than directions to fit to them.

    Args:
        images: number of images of the data fraction.
        views: views per image; each gives one feature.
        directions: the smaller of the widths of student and teacher.
        fraction: data fraction in (0, 1], for the fix in the error.
        pool: number of all pre-training images, for the fix in the error.
        subject: what is fitted; the error begins with this text.
    """
    if images * views > directions:
        return
    fixes = []
    needed_images = math.floor(directions / views) + 1
    if fraction < 1 and pool >= needed_images:
        fixes.append(
            f"use a data fraction of {math.ceil(1000 * needed_images / pool) / 1000:g} or more"
        )
    fixes.append(f"set budget.views to {math.floor(directions / max(images, 1)) + 1} or more")
    each = "1 fixed view" if views == 1 else f"{views} fixed views"
    fixes.append(f"add images to the pool ({needed_images} with {each} each)")
    fixes.append("choose a narrower student or a method without alignment")
    raise KdepError(
        f"{subject}: {images} images with {each} each give {images * views} features, too few to "
        f"estimate {directions} directions",
        expected=f"more than {directions} features",
        fix=", or ".join(fixes),
    )

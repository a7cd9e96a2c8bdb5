"""Input normalisation: the mean and std of every student, and checks of those in configs.

All students are normalised with MEAN and STD, in pre-training and in transfer training: ImageNet
channel statistics in RGB order, on the 0-255 scale (mmpretrain 1.2.0's ImageNet data preprocessor;
torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 times 255).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from kdep_bench.errors import KdepError

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
WHITE = 255.0  # largest pixel value
_EXAMPLE = f"RGB, on the 0-255 scale, such as mean={MEAN}, std={STD}"


def check_normalisation(mean: Any, std: Any, where: str) -> None:
    """Raises KdepError if `mean` and `std` do not fit RGB pixels on the 0-255 scale.

    The network reads (pixel - mean) / std. These values are refused:

    - not three finite numbers each; a std of 0 or less,
    - values on the 0-1 scale, or multiplied by 255 twice,
    - mean and std exchanged (a std of values in 0..255 is at most sqrt(mean (255 - mean))),
    - the ImageNet mean in BGR order.

    A std of 1 for every channel (Caffe's networks), a mean of 0 with a std from 1 to 255, and
    values that map all pixels into 0..1 are accepted.

    Args:
        mean: one value per channel, R, G, B.
        std: one value per channel, R, G, B.
        where: the config that states them; the error begins with it ("teacher resnet50").
    """
    for name, values in (("mean", mean), ("std", std)):
        if (fault := _not_three_numbers(values)) is not None:
            raise _refusal(where, f"{name} = {values!r:.80}, {fault}")
    m, s = [float(v) for v in mean], [float(v) for v in std]
    both = f"mean = {_shown(m)} and std = {_shown(s)}"
    if min(s) <= 0:
        raise _refusal(where, f"{both}: a std of {min(s):g}, which is not above 0")
    if all(a < 0 and WHITE - a < b for a, b in zip(m, s, strict=True)):
        return  # maps pixels into 0..1, as mmpretrain's EfficientNet does (0.1 to 0.9)
    if min(m) < 0:
        raise _refusal(where, f"{both}: a mean below 0, although pixels are 0 or more")
    if 0 < max(m) <= 1 or min(s) < 1:
        raise _refusal(where, f"{both}: values on the 0-1 scale", "multiply both by 255")
    if max(m) > WHITE or max(s) > WHITE:
        raise _refusal(where, f"{both}: values above 255", "divide both by 255")
    # The factor 1 + 1e-6 is for rounding: a mean and std of 127.5 are exactly at the bound.
    if any(a > 0 and b * b > a * (WHITE - a) * (1 + 1e-6) for a, b in zip(m, s, strict=True)):
        reason = "pixels between 0 and 255 with this mean cannot have so large a std"
        raise _refusal(where, f"{both}: {reason}", "check whether mean and std are exchanged")
    if all(abs(a - b) < 0.5 for a, b in zip(m, reversed(MEAN), strict=True)):
        raise _refusal(
            where, f"{both}: the ImageNet mean in BGR order", "reverse the order of both"
        )


def check_stated(teacher: Mapping[str, Any]) -> None:
    """Checks `mean` and `std` of a teacher's config, if it has them.

    Raises:
        KdepError: see `check_normalisation`; or the config has only one of the two.
    """
    mean, std = teacher.get("mean"), teacher.get("std")
    where = f"the config of teacher {teacher.get('name')!r}"
    if mean is None and std is None:
        return
    if mean is None or std is None:
        present, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise KdepError(
            f"{where} has {present} but no {missing}",
            expected="both, or neither (then the values of its library are used)",
            fix=f"add {missing}=",
        )
    check_normalisation(mean, std, where)


def check_recipe(task: Mapping[str, Any]) -> None:
    """Raises KdepError if a task's model has a `mean` or `std` other than MEAN and STD.

    Every student is fine-tuned with the normalisation of its pre-training, so other values would be
    silently replaced.
    """
    model = (task.get("recipe") or {}).get("model") or {}
    stated = model.get("data_preprocessor") or {} if isinstance(model, Mapping) else {}
    for key, right in (("mean", MEAN), ("std", STD)):
        value = stated.get(key)
        if value is not None and (_not_three_numbers(value) or list(value) != list(right)):
            raise KdepError(
                f"the model of task {task.get('name')!r} sets {key} = {value!r:.80} in its "
                f"data_preprocessor, but every student is normalised with {right}, as in "
                "pre-training",
                fix=f"remove {key} from data_preprocessor",
            )


def _not_three_numbers(values: Any) -> str | None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return "which is not a list"
    if not all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
        return "which are not all numbers"
    if len(values) != 3:
        return f"a list of {len(values)}"
    if not all(math.isfinite(v) for v in values):
        return "which are not all finite"
    return None


def _refusal(where: str, fault: str, fix: str = "") -> KdepError:
    fix = f"{fix}; the correct values are in the network's documentation" if fix else "correct both"
    return KdepError(
        f"{where} normalises with {fault}", expected=f"three channels, {_EXAMPLE}", fix=fix
    )


def _shown(values: Sequence[float]) -> str:
    return f"({', '.join(f'{v:g}' for v in values)})"

"""The one normalisation of every student, in pre-training and in every transfer; checks of others.

ImageNet channel statistics, RGB, on the 0-255 scale (mmpretrain 1.2.0's ImageNet data
preprocessor; torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 times 255).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from kdep_bench.errors import KdepError

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
WHITE = 255.0
_EXAMPLE = f"RGB, on the 0-255 scale, such as mean={MEAN}, std={STD}"


def check_normalisation(mean: Any, std: Any, where: str) -> None:
    """KdepError where a network would get pixels on a scale that it was not trained on.

    Pixels are RGB from 0 to 255, and the network reads (pixel - mean) / std. Refused: other than
    three finite numbers, a deviation of 0 or less, values of the 0-1 scale, values scaled twice,
    mean and deviation exchanged (a deviation of values in 0..255 is at most
    sqrt(mean (255 - mean))), the mean of ImageNet in BGR order. Allowed are a deviation of 1 for
    every channel (Caffe's networks), a mean of 0 with any deviation, and what puts all pixels
    inside 0..1: mere changes of scale.

    Args:
        mean: one value per channel.
        std: the same.
        where: who states them, for the error ("teacher resnet50").
    """
    for name, values in (("mean", mean), ("std", std)):
        if (fault := _not_three_numbers(values)) is not None:
            raise _refusal(where, f"{name} = {values!r:.80}, {fault}")
    m, s = [float(v) for v in mean], [float(v) for v in std]
    both = f"mean = {_shown(m)} and std = {_shown(s)}"
    if min(s) <= 0:
        raise _refusal(where, f"{both}: a deviation of {min(s):g}, by which nothing can be divided")
    if all(a < 0 and WHITE - a < b for a, b in zip(m, s, strict=True)):
        return  # pixels become values inside 0..1, as in mmpretrain's EfficientNet (0.1 to 0.9)
    if min(m) < 0:
        raise _refusal(where, f"{both}: a mean below 0, which no pixel has")
    if 0 < max(m) <= 1 or min(s) < 1:
        raise _refusal(where, f"{both}: values of the 0-1 scale", "multiply both by 255")
    if max(m) > WHITE or max(s) > WHITE:
        raise _refusal(where, f"{both}: values above 255", "divide both by 255")
    # 1e-6: (127.5, 127.5) meets the bound exactly
    if any(a > 0 and b * b > a * (WHITE - a) * (1 + 1e-6) for a, b in zip(m, s, strict=True)):
        reason = "no pixels between 0 and 255 with this mean have this deviation"
        raise _refusal(where, f"{both}: {reason}", "see whether mean and std are exchanged")
    if all(abs(a - b) < 0.5 for a, b in zip(m, reversed(MEAN), strict=True)):
        raise _refusal(where, f"{both}: ImageNet's mean in BGR order", "reverse both")


def check_stated(teacher: Mapping[str, Any]) -> None:
    """`check_normalisation` of a teacher's config that states `mean` or `std`.

    Raises:
        KdepError: as there; or one is stated without the other.
    """
    mean, std = teacher.get("mean"), teacher.get("std")
    where = f"the config of teacher {teacher.get('name')!r}"
    if mean is None and std is None:
        return
    if mean is None or std is None:
        given, lacking = ("std", "mean") if mean is None else ("mean", "std")
        raise KdepError(
            f"{where} has {given} but no {lacking}",
            expected="both, or neither (then the values of its library are used)",
            fix=f"add {lacking}=",
        )
    check_normalisation(mean, std, where)


def check_recipe(task: Mapping[str, Any]) -> None:
    """KdepError where a task's model states another normalisation than that of every student.

    It would be replaced without a word: a student is fine-tuned on pixels as it was pre-trained on.
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
        return "which is no list"
    if not all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
        return "which are not all numbers"
    if len(values) != 3:
        return f"a list of {len(values)}"
    if not all(math.isfinite(v) for v in values):
        return "which are not all finite"
    return None


def _refusal(where: str, got: str, fix: str = "") -> KdepError:
    fix = f"{fix}; the correct values are in the network's documentation" if fix else "correct both"
    return KdepError(
        f"{where} normalises with {got}", expected=f"three channels, {_EXAMPLE}", fix=fix
    )


def _shown(values: Sequence[float]) -> str:
    return f"({', '.join(f'{v:g}' for v in values)})"

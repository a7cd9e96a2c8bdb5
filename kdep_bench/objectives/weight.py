"""The automatic loss weight: inversely proportional to the mean square of the target."""

from __future__ import annotations

from kdep_bench.errors import KdepError

# The loss of an output of zero for weight="auto". With 20, KDEP trains well at the learning rates
# of the supervised method (`configs/suites/pocket_weight.py` varies it). A smaller loss with a
# larger learning rate would also change the effect of the weight decay.
DEFAULT_LOSS_AT_ZERO = 20.0


def loss_weight(
    weight: float | str,
    scale: float,
    mean_square: float | None,
    quantity: str = "the target's mean square",
) -> float:
    """`weight` if it is a number; for "auto", `scale` / `mean_square`.

    With "auto", an output of zero has the loss `scale`, for every teacher and every T and n of the
    power temperature scaling. The public scripts of CVMI-Lab/KDEP set w by hand: 3 for one teacher,
    20 for another.

    Args:
        weight: a number or "auto".
        scale: the loss of an output of zero, for "auto".
        mean_square: mean square of the target over channels and alignment samples, or another
            `quantity` by which the loss is divided.
        quantity: what `mean_square` is, for the error.

    Raises:
        KdepError: "auto" with a mean square that is None, 0, infinite or NaN.
    """
    if weight != "auto":
        return float(weight)
    if mean_square is None or not 0 < mean_square < float("inf"):
        raise KdepError(
            f"{quantity} is {mean_square}",
            expected="a positive number for weight='auto'",
            fix="check the teacher's features, or set `weight` in the method's objective to a "
            "number",
        )
    return scale / mean_square

"""The loss weight's rule: one number that serves every teacher."""

from __future__ import annotations

from kdep_bench.errors import KdepError

# The loss of an output of zero under weight="auto". With 20, KDEP trains at the learning
# rates of the supervised method (see `configs/suites/pocket_weight.py`, which varies it), and the
# paper's weight decay keeps its meaning; a larger learning rate instead would change it.
DEFAULT_LOSS_AT_ZERO = 20.0


def loss_weight(weight: float | str, scale: float, mean_square: float | None) -> float:
    """w itself, or for "auto" w = `scale` / `mean_square`.

    `mean_square` is the mean square of the target, over channels and alignment samples. An output
    of zero then costs `scale`, and the loss is `scale` times the unexplained fraction of that mean
    square, whatever the teacher, its features' unit, T or n. The public scripts of CVMI-Lab/KDEP
    guess instead: w = 3 for one teacher and 20 for another.
    """
    if weight != "auto":
        return float(weight)
    if mean_square is None or not 0 < mean_square < float("inf"):
        raise KdepError(
            f"the target's mean square is {mean_square}",
            expected="a positive number for weight='auto'",
            fix="check the teacher's features, or give `weight` a number",
        )
    return scale / mean_square

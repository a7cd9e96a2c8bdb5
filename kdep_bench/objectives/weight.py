"""The loss weight's rule: one number that serves every teacher."""

from __future__ import annotations

from kdep_bench.errors import KdepError

# With this factor the KDEP arm trains at the learning rates of the supervised arm (see
# `configs/suites/pocket_weight.py`, which varies it): the loss starts at AUTO, and the weight decay
# of the paper keeps its meaning, which a large learning rate in place of the weight would not.
AUTO = 20.0


def loss_weight(weight: float | str, scale: float, energy: float | None) -> float:
    """w itself, or for "auto" w = `scale` / `energy`.

    `energy` is the mean square of what is regressed, over channels and fitting rows. An output of
    zero then costs `scale`, and the loss is `scale` times the share of the energy not yet
    explained, whatever the teacher, its features' unit, T or n. The public scripts of
    CVMI-Lab/KDEP guess instead: w = 3 for one teacher and 20 for another.
    """
    if weight != "auto":
        return float(weight)
    if energy is None or not 0 < energy < float("inf"):
        raise KdepError(
            f"the target's mean square is {energy}",
            expected="a positive number for weight='auto'",
            fix="check the teacher's features, or give `weight` a number",
        )
    return scale / energy

"""Number of optimiser steps of a pre-training budget, and checks of the budget. Imports no torch.

Called when a suite is planned, if the number of images is already known, and again by the
pre-training stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdep_bench.errors import KdepError

DIFFERENCE = 0.05  # relative difference between requested and actual epochs that is reported


def whole_batches(budget: Mapping[str, Any], images: int, pool: int) -> int:
    """Number of complete batches in the budget's epochs.

    Args:
        budget: epochs, batch; with epochs_over="pool", an epoch is `pool` images, not `images`.
        images: images of the data fraction.
        pool: images of the pool.
    """
    counted = pool if budget.get("epochs_over") == "pool" else images
    return math.floor(budget["epochs"] * counted / budget["batch"])


def check_budget(budget: Mapping[str, Any], images: int, pool: int, share: float, who: str) -> int:
    """The number of optimiser steps of a budget.

    Args:
        budget: epochs, batch, and optionally epochs_over and ema.
        images: images of the data fraction.
        pool: images of the pool.
        share: the data fraction, for messages.
        who: name of the method, for messages.

    Raises:
        KdepError: more images per batch than the data fraction has, less than one batch in all, or
            a moving average of the weights that consists mostly of the initial weights at the end.
    """
    batch, epochs = budget["batch"], budget["epochs"]
    if batch > images:
        more = ""
        if share < 1 and pool >= batch:
            more = f", or use a data fraction of {math.ceil(1000 * batch / pool) / 1000:g} or more"
        raise KdepError(
            f"{who} has a batch of {batch}, but only {images} images: one step would be "
            f"{batch / max(images, 1):.3g} epochs",
            fix=f"set budget.batch to {images} or less{more}, or add images to the pool",
        )
    steps = whole_batches(budget, images, pool)
    if steps < 1:
        counted = pool if budget.get("epochs_over") == "pool" else images
        raise KdepError(
            f"{who} trains for {epochs:g} epochs of {counted} images, {epochs * counted:.4g} "
            f"samples, which is less than one batch of {batch}",
            fix=f"set budget.epochs to {math.ceil(1000 * batch / counted) / 1000:g} or more, or "
            "lower budget.batch",
        )
    ema = budget.get("ema")
    if ema is not None and ema**steps > 0.5:
        raise KdepError(
            f"{who} averages weights with ema = {ema:g} over {steps} steps: "
            f"{100 * ema**steps:.0f} % of the average would be the initial weights",
            expected="at most 50 %",
            fix=f"set budget.ema to {math.floor(1000 * 0.5 ** (1 / steps)) / 1000:g} or less, or "
            "train for longer",
        )
    return steps


def epochs_note(budget: Mapping[str, Any], images: int, pool: int, steps: int) -> str | None:
    """A note if the complete batches give another number of epochs than requested, else None."""
    counted = pool if budget.get("epochs_over") == "pool" else images
    done, asked = steps * budget["batch"] / counted, budget["epochs"]
    if abs(done - asked) <= DIFFERENCE * asked:
        return None
    return f"pre-trained for {done:.3g} epochs, asked for {asked:.3g}: only whole batches are taken"

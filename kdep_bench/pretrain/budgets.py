"""Number of optimiser steps of a pre-training budget, and checks of the budget. Imports no torch.

The planner uses this module if the number of images is already known; the pre-training stage always
does. The pool, in argument names, is the set of all pre-training images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdep_bench.errors import KdepError

# Relative difference between actual and requested epochs above which the record gets a note.
DIFFERENCE = 0.05


def whole_batches(budget: Mapping[str, Any], images: int, pool: int) -> int:
    """Number of complete batches in the budget's epochs.

    Args:
        budget: epochs, batch; with epochs_over="pool", an epoch is `pool` images, not `images`.
        images: number of images of the data fraction.
        pool: number of images of the pool.
    """
    epoch_images = pool if budget.get("epochs_over") == "pool" else images
    return math.floor(budget["epochs"] * epoch_images / budget["batch"])


def check_budget(
    budget: Mapping[str, Any], images: int, pool: int, share: float, subject: str
) -> int:
    """The number of optimiser steps of a budget.

    Args:
        budget: epochs, batch, and optionally epochs_over and ema.
        images: number of images of the data fraction.
        pool: number of images of the pool.
        share: the data fraction, for errors.
        subject: name of the method, for errors.

    Raises:
        KdepError: a batch is larger than the data fraction, the whole run is shorter than one
            batch, or more than half of the final weight average would be the initial weights.
    """
    batch, epochs = budget["batch"], budget["epochs"]
    if batch > images:
        or_fraction = ""
        if share < 1 and pool > batch:
            fraction = math.ceil(1000 * batch / pool) / 1000
            or_fraction = f", or use a data fraction of {fraction:g} or more"
        epochs_per_step = batch / max(images, 1)
        shown = f"{epochs_per_step:.3g}" if epochs_per_step < 100 else f"{epochs_per_step:,.0f}"
        raise KdepError(
            f"{subject} has a batch of {batch}, but only {images} image{'s' * (images != 1)}: one "
            f"step would be {shown} epochs",
            fix=f"add images to the pool, or set budget.batch to at most {images}{or_fraction}",
        )
    steps = whole_batches(budget, images, pool)
    if steps < 1:
        epoch_images = pool if budget.get("epochs_over") == "pool" else images
        raise KdepError(
            f"{subject} trains for {epochs:g} epochs of {epoch_images} images, "
            f"{epochs * epoch_images:.4g} samples, which is less than one batch of {batch}",
            fix=f"set budget.epochs to {math.ceil(1000 * batch / epoch_images) / 1000:g} or more, "
            "or lower budget.batch",
        )
    ema = budget.get("ema")
    if ema is not None and ema**steps > 0.5:
        raise KdepError(
            f"{subject} averages weights with ema = {ema:g} over {steps} steps: "
            f"{100 * ema**steps:.0f} % of the average would be the initial weights",
            expected="at most 50 %",
            fix=f"set budget.ema to {math.floor(1000 * 0.5 ** (1 / steps)) / 1000:g} or less, or "
            "increase budget.epochs",
        )
    return steps


def epochs_note(budget: Mapping[str, Any], images: int, pool: int, steps: int) -> str | None:
    """A note for the record if actual and requested epochs differ by more than DIFFERENCE.

    They differ because only complete batches are trained.
    """
    epoch_images = pool if budget.get("epochs_over") == "pool" else images
    actual, requested = steps * budget["batch"] / epoch_images, budget["epochs"]
    if abs(actual - requested) <= DIFFERENCE * requested:
        return None
    return (
        f"pre-trained for {actual:.3g} of {requested:.3g} requested epochs, because only complete "
        "batches are trained"
    )

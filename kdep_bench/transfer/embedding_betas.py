"""Check of TransKD's settings about patch embeddings; planning calls it, so it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdep_bench.errors import KdepError, unknown_name


def check_betas(config: Mapping[str, Any]) -> None:
    """Checks that the patch embeddings that TransKD changes are compared: their betas are above 0.

    Args:
        config: arguments of `transfer.methods.transkd.TransKD`, at least `levels`.

    Raises:
        KdepError: a beta of an unknown level, or a change of embeddings that are not compared.
    """
    levels, betas = config["levels"], config.get("betas") or {}
    mixer, assistants = bool(config.get("mixer")), bool(config.get("assistants"))
    for level in betas:
        if level not in levels:
            raise unknown_name("level", level, levels, place="`betas` of TransKD")
    if (assistants or mixer) and not any(beta > 0 for beta in betas.values()):
        raise KdepError(
            "TransKD with `mixer` or `assistants` changes patch embeddings, but no beta is above "
            "0, so that none is read",
            fix="set `betas` in `transfer` of the method, or remove the two options",
        )
    deepest = max(levels, key=lambda level: int(level[1:]), default="")
    if mixer and not betas.get(deepest):
        raise KdepError(
            f"TransKD with `mixer` changes the patch embedding of the deepest level, but the "
            f"deepest level, {deepest}, has the beta 0",
            fix="set its beta above 0 in `transfer` of the method, or remove `mixer`",
        )

"""Weights of a backbone from a file that the user names: a checkpoint made elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.checkpoints import read_checkpoint
from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import load_exactly

PREFIX = "backbone."


def given_weights(backbone: nn.Module, weights: str) -> None:
    """Loads the backbone's weights from a file, and verifies each tensor.

    Args:
        backbone: the student, as its config builds it.
        weights: a torch or safetensors file of its complete state dict, plain, below "state_dict",
            or with all backbone names behind the prefix "backbone." (other names are then dropped).

    Raises:
        KdepError: no such file, no state dict, or tensors that do not fit exactly.
    """
    tensors = read_checkpoint(weights)
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    is_state = isinstance(tensors, dict) and all(isinstance(n, str) for n in tensors)
    if not is_state:
        raise KdepError(
            f"the weights file {weights} contains a {type(tensors).__name__}"
            + (" whose keys are not text" if isinstance(tensors, dict) else ""),
            expected="a state dict",
            fix="save backbone.state_dict()",
        )
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {n.removeprefix(PREFIX): v for n, v in tensors.items() if n.startswith(PREFIX)}
    faults = {n: _fault(v) for n, v in tensors.items() if n in backbone.state_dict()}
    bad = [n for n, fault in faults.items() if fault]
    if bad:
        raise KdepError(
            f"{len(bad)} entries in {weights} {faults[bad[0]]}: {bad[:3]}",
            expected="tensors of finite numbers",
            fix="use another checkpoint of this training, or save backbone.state_dict() again",
        )
    load_exactly(backbone, tensors, str(weights))


def _fault(value: Any) -> str:
    """The reason that a value cannot be a weight, as a clause; empty if it can."""
    if not isinstance(value, Tensor):
        return "are no tensors"
    return "" if bool(torch.isfinite(value).all()) else "are not finite"

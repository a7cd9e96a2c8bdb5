"""Weights of a backbone from a file that the user names: a checkpoint made elsewhere."""

from __future__ import annotations

from torch import nn

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
    if not isinstance(tensors, dict):
        raise KdepError(
            f"the weights file {weights} contains a {type(tensors).__name__}",
            expected="a state dict",
            fix="save backbone.state_dict()",
        )
    if any(str(name).startswith(PREFIX) for name in tensors):
        tensors = {n.removeprefix(PREFIX): v for n, v in tensors.items() if n.startswith(PREFIX)}
    load_exactly(backbone, tensors, str(weights))

"""Weights of a backbone from a file that the user names: a checkpoint made elsewhere."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kdep_bench.teachers.base import load_exactly
from kdep_bench.teachers.weights import read_weights

PREFIX = "backbone."


def given_weights(backbone: nn.Module, weights: str) -> None:
    """Loads the backbone's weights from a file, and verifies each tensor.

    Args:
        backbone: the student, as its config builds it.
        weights: a torch or safetensors file of its complete state dict, plain, below one entry such
            as "state_dict", or with all backbone names behind the prefix "backbone." (other names
            are then dropped).

    Raises:
        KdepError: no such file, no state dict, a value that is not finite, or tensors that do not
            fit exactly.
    """
    tensors = read_weights(Path(weights))
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {n.removeprefix(PREFIX): v for n, v in tensors.items() if n.startswith(PREFIX)}
    load_exactly(backbone, tensors, weights)

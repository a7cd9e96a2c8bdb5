"""Loads the weights of a backbone from a file of the user."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kdep_bench.teachers.base import load_exactly
from kdep_bench.teachers.weights import read_weights

PREFIX = "backbone."


def given_weights(backbone: nn.Module, weights: str) -> None:
    """Loads the backbone's weights from a file, and checks each tensor.

    Args:
        backbone: the student's backbone, as its config builds it.
        weights: path of a torch or safetensors file with its complete state dict. The state dict
            may be inside an entry such as "state_dict". If names begin with "backbone.", only these
            tensors are loaded, without the prefix.

    Raises:
        KdepError: the file does not exist or has no state dict, a value is not finite, or names or
            shapes differ from those of the backbone.
    """
    tensors = read_weights(Path(weights))
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {n.removeprefix(PREFIX): v for n, v in tensors.items() if n.startswith(PREFIX)}
    load_exactly(backbone, tensors, weights)

"""kdep_bench: KDEP pre-training, and a downstream benchmark of the pre-trained backbones.

Packages, lowest first; each imports only lower ones (tests/test_layers.py): `errors`, `files` ->
`data`, `ops` -> `openmmlab` -> `networks` -> `teachers`, `students`, `features`, `objectives` ->
`pretrain`, `transfer` -> `suite` -> `engine`, `results`. This file does not import torch, so that
planning and reporting work without it.

`pretrain`, `evaluate`, `extract_features` and `compare` are the functions of `kdep_bench.api`,
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdep_bench.api import compare, evaluate, extract_features, pretrain

__all__ = ["compare", "evaluate", "extract_features", "pretrain"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("kdep_bench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
